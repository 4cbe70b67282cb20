"""Heat maps of boxes from whole feature maps; used by all hypercolumn heads.

Shape shorthand: ``N`` images, ``R`` boxes of all images, ``L`` labels, ``M`` side of a heat map.
"""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, get_norm
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from hypernet_d2.config import hypernet_node
from hypernet_d2.layers import LocationClassifiers

__all__ = ["HypercolumnPredictor"]


class HypercolumnPredictor(nn.Module):
    """Location-specific classifiers over hypercolumns, with a bias from a feature of the box.

    The classifiers cover the expanded box, see :class:`hypernet_d2.layers.LocationClassifiers`. The
    feature of the box corresponds to fc7 in the paper. The predictor computes it from the feature
    maps itself, so that it does not depend on the box head.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        num_labels: int,
        in_features: list[str],
        norm: str = "",
        grid_size: int = 5,
        kernel_size: int = 1,
        heatmap_size: int = 50,
        box_expansion: float = 0.1,
        pooler_resolution: int = 7,
        conv_dim: int = 64,
        fc_dim: int = 1024,
    ):
        """
        Args:
            input_shape: channels and stride of the feature maps by name.
            num_classes: number of classes with separate classifiers; 1 if all share them.
            num_labels: L.
            in_features: feature maps of the hypercolumn; the box feature is pooled from the last.
            norm: normalization of each map before its classifiers, a name of detectron2's
                ``get_norm``; "" for none.
            grid_size, kernel_size, heatmap_size: see LocationClassifiers.
            box_expansion: how far each side is moved outwards, as a fraction of the width or height
                of the box.
            pooler_resolution: bins per side of the pooled box feature.
            conv_dim: channels of its 3x3 convolution.
            fc_dim: width of its fully connected layer; 0 for no box feature.

        Raises:
            ValueError: if ``input_shape`` is that of pooled regions or has no map of a name in
                ``in_features``, if ``box_expansion`` is negative, and as LocationClassifiers does.
        """
        super().__init__()
        _check_features(in_features, input_shape)
        if box_expansion < 0:
            raise ValueError(f"HYPERCOLUMN.BOX_EXPANSION is {box_expansion}; expected 0 or more")
        shapes = {name: input_shape[name] for name in in_features}
        self.box_expansion = box_expansion
        self.in_features = list(in_features)
        self.norms = nn.ModuleDict(
            {
                name: get_norm(norm, shape.channels) or nn.Identity()
                for name, shape in shapes.items()
            }
        )
        self.classifiers = LocationClassifiers(
            {name: shape.channels for name, shape in shapes.items()},
            {name: shape.stride for name, shape in shapes.items()},
            num_classes=num_classes,
            num_labels=num_labels,
            grid_size=grid_size,
            kernel_size=kernel_size,
            heatmap_size=heatmap_size,
        )
        self.box_head = None
        if fc_dim:
            last = shapes[in_features[-1]]
            self.pooler = ROIPooler(
                pooler_resolution, [1 / last.stride], sampling_ratio=0, pooler_type="ROIAlignV2"
            )
            pooled = ShapeSpec(
                channels=last.channels, height=pooler_resolution, width=pooler_resolution
            )
            self.box_head = FastRCNNConvFCHead(pooled, conv_dims=[conv_dim], fc_dims=[fc_dim])
            self.box_bias = nn.Linear(fc_dim, self.classifiers.out_channels, bias=False)
            nn.init.normal_(self.box_bias.weight, std=0.001)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: Mapping[str, ShapeSpec],
        *,
        num_classes: int,
        num_labels: int,
    ) -> dict:
        """From the keys of ``MODEL.HYPERNET.HYPERCOLUMN``."""
        node = hypernet_node(cfg).HYPERCOLUMN
        return {
            "input_shape": input_shape,
            "num_classes": num_classes,
            "num_labels": num_labels,
            "in_features": list(node.IN_FEATURES or cfg.MODEL.ROI_HEADS.IN_FEATURES),
            "norm": node.NORM,
            "grid_size": node.GRID_SIZE,
            "kernel_size": node.KERNEL_SIZE,
            "heatmap_size": node.HEATMAP_SIZE,
            "box_expansion": node.BOX_EXPANSION,
            "pooler_resolution": node.POOLER_RESOLUTION,
            "conv_dim": node.CONV_DIM,
            "fc_dim": node.FC_DIM,
        }

    def expand(self, boxes: Boxes) -> Boxes:
        """The boxes that the classifiers cover; they may extend beyond the image."""
        size = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
        margin = self.box_expansion * size
        return Boxes(cat([boxes.tensor[:, :2] - margin, boxes.tensor[:, 2:] + margin], dim=1))

    def forward(
        self,
        features: Mapping[str, Tensor],
        boxes: list[Boxes],
        classes: Tensor | None = None,
        *,
        expanded: bool,
    ) -> Tensor:
        """
        Args:
            features: feature maps by name, (N, C, h, w).
            boxes: per image, in pixels of the network's input.
            classes: (R,); unused if all classes share the classifiers.
            expanded: whether the heat maps cover the expanded boxes or ``boxes``. The logit at a
                position in the image is the same.

        Returns:
            Logits, (R, L, M, M).
        """
        features = {name: norm(features[name]) for name, norm in self.norms.items()}
        bias = None
        if self.box_head is not None:
            pooled = self.pooler([features[self.in_features[-1]]], boxes)
            bias = self.box_bias(self.box_head(pooled))
        areas = [self.expand(b) for b in boxes] if expanded else boxes
        return self.classifiers(
            features,
            convert_boxes_to_pooler_format(areas),
            classes if self.classifiers.num_classes > 1 else None,
            bias,
            margin=0.0 if expanded else self.box_expansion,
        )


def _check_features(in_features: list[str], input_shape: Mapping[str, ShapeSpec]) -> None:
    if isinstance(input_shape, ShapeSpec):
        raise ValueError(
            "a hypercolumn head reads whole maps, not pooled regions: set POOLER_TYPE of its node "
            '(MODEL.ROI_MASK_HEAD or MODEL.ROI_KEYPOINT_HEAD) to "", with StandardROIHeads or '
            "HyperNetROIHeads"
        )
    missing = [name for name in in_features if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES is {in_features}, but the ROI heads have only "
            f"{list(input_shape)}. StandardROIHeads passes on MODEL.ROI_HEADS.IN_FEATURES, "
            "HyperNetROIHeads any map of the backbone"
        )
