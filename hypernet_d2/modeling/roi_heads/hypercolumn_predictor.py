"""Heat maps of boxes from whole maps: what the hypercolumn heads share.

Shapes: ``N`` images, ``R`` boxes of all images, ``L`` labels, ``M`` positions along a heat map.
"""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, get_norm
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from hypernet_d2.layers import LocationClassifiers

__all__ = ["HypercolumnPredictor"]


class HypercolumnPredictor(nn.Module):
    """Location-specific classifiers over hypercolumns, biased by a feature of the whole box.

    The classifiers lie over the box after each of its sides was moved outwards a little; see
    :class:`hypernet_d2.layers.LocationClassifiers`. The box's feature takes the place of the
    paper's fc7; it is the predictor's own, so that any ROI heads can hold one.
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
            input_shape: {name: channels and stride} of the maps that ``forward`` is given.
            num_classes: classes with classifiers of their own; 1 if all share them.
            num_labels: L.
            in_features: maps that make up the hypercolumn; the box's feature is of the last.
            norm: name of detectron2's normalisation of each map; "" for none.
            grid_size, kernel_size, heatmap_size: see LocationClassifiers.
            box_expansion: how far each side is moved outwards, in widths or heights of the box.
            pooler_resolution, conv_dim, fc_dim: of the box's feature; ``fc_dim`` 0 leaves it out.

        Raises:
            ValueError: if the maps are not given whole or one of ``in_features`` is missing, if
                ``box_expansion`` is negative, and as LocationClassifiers does.
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
        """The keys of ``MODEL.HYPERNET.HYPERCOLUMN``."""
        node = cfg.MODEL.HYPERNET.HYPERCOLUMN
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
        """The boxes that the classifiers lie over; they may reach beyond the image."""
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
        """Logits (R, L, M, M).

        Args:
            features: {name: (N, C, h, w)}, with the names of ``input_shape``.
            boxes: one item an image, in pixels of the network's input.
            classes: (R,), or None where all classes share their classifiers.
            expanded: whether the heat maps lie over the boxes of :meth:`expand` or over ``boxes``
                themselves. It is the same function of the position in the image.
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
            '(MODEL.ROI_MASK_HEAD or MODEL.ROI_KEYPOINT_HEAD) to "", in StandardROIHeads or '
            "HyperNetROIHeads"
        )
    missing = [name for name in in_features if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.HYPERNET.HYPERCOLUMN.IN_FEATURES is {in_features}, but the ROI heads have only "
            f"{list(input_shape)}. StandardROIHeads hands on MODEL.ROI_HEADS.IN_FEATURES, "
            "HyperNetROIHeads every map of the backbone"
        )
