"""A detector as one graph that can be exported.

Shape shorthand: ``(H, W)`` canvas, the largest image, ``(h, w)`` padded image, in pixels; ``K``
proposals, ``C`` channels, ``D`` detections; the rest as in `roi_heads`.
"""

from __future__ import annotations

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    BaseKeypointRCNNHead,
    BaseMaskRCNNHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from torch import Tensor, nn

from hypernet_d2.modeling.proposal_generator.hypernet_proposals import HyperNetProposals
from hypernet_d2.modeling.roi_heads import HyperNetROIHeads

from .padding import fix_same_padding
from .proposals import ExportableRPN, ExportableWindows
from .roi_heads import ExportableROIHeads

__all__ = ["ExportableDetector", "size_divisibility"]


def size_divisibility(model: GeneralizedRCNN) -> int:
    """The multiple of pixels to which ``model`` pads the height and the width of an image.

    1 is no padding, as of a ResNet without a pyramid. A backbone with square input (``square_size``
    of ViTDet) has images padded to that size.
    """
    square_size = model.backbone.padding_constraints.get("square_size", 0)
    return max(square_size, model.backbone.size_divisibility, 1)


class ExportableDetector(nn.Module):
    """``GeneralizedRCNN.inference`` of one image, from pixels to detections.

    The stock inference returns as many boxes as it finds. Here the proposals and the detections
    have a fixed number, the maximum, and those that are not valid are marked. Otherwise the modules
    and the operations are those of the model, and so are the detections.

    The image is padded as the model pads it, to a multiple of its size divisibility. More padding
    would change the result: the padding of a convolution is zero, while zeros beyond the image are
    not zero after a convolution with bias. Only the windows, or anchors, are those of the canvas,
    since their number has to be fixed.

    For the same reason an image is the input, and not a batch: in a batch detectron2 pads each
    image to the largest one, which changes its features.
    """

    def __init__(self, model: GeneralizedRCNN, canvas: tuple[int, int]):
        """
        Args:
            model: a detector with `HyperNetProposals` or detectron2's RPN, and with the ROI heads
                of `hypernet_d2` or of detectron2; is put into evaluation mode, and its trunk of
                timm gets fixed padding, which changes no result.
            canvas: (H, W); must be multiples of the model's :func:`size_divisibility`.

        Raises:
            ValueError: for another meta-architecture, proposal generator or kind of ROI heads, or
                for another canvas.
        """
        super().__init__()
        _check(model)
        divisor = size_divisibility(model)
        if any(side < 1 or side % divisor for side in canvas):
            raise ValueError(f"canvas is {tuple(canvas)}; expected multiples of {divisor}")
        fix_same_padding(model.backbone)
        self.model = model.eval()
        self.canvas = tuple(canvas)
        if isinstance(model.proposal_generator, HyperNetProposals):
            self.proposals = ExportableWindows(model.proposal_generator, self.canvas)
        else:
            with torch.no_grad():
                features = model.backbone(model.pixel_mean.new_zeros(1, 3, *self.canvas))
            self.proposals = ExportableRPN(model.proposal_generator, features)
        self.heads = ExportableROIHeads(model.roi_heads)

    @property
    def feature_stride(self) -> int:
        """Stride in pixels of the map that ``forward`` returns."""
        return self.model.backbone.output_shape()[self.proposals.in_feature].stride

    @torch.no_grad()
    def forward(self, image: Tensor, size: Tensor, num_proposals: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (h, w, 3) uint8 in the model's channel order, at most (H, W); the image, padded
                at the bottom and at the right to multiples of the size divisibility. The values of
                the padding are ignored.
            size: (2,) int64, height and width of the image without padding.
            num_proposals: () int64, number of the best proposals that are classified, at most K.

        Returns:
            boxes (D, 4), scores (D,) and classes (D,) int64 of the detections; proposals (K, 4),
            their objectness logits (K,), and the windows or anchors (K, 4) from which they were
            regressed; the map (C, h', w') on which they were scored; and, by ``heads.outputs``,
            masks (V, 1, M, M), part masks or heat maps (V, L, M, M), of which the first belong to
            the valid detections. Sorted by score; boxes in pixels of the image. Entries that are
            not valid have a score of 0, or an objectness of -inf.
        """
        pixels = self._normalize(image, size)
        features = self.model.backbone(pixels[None])
        proposals, objectness, windows = self.proposals(features, size)
        counted = torch.arange(len(objectness), device=size.device) < num_proposals
        objectness = objectness.masked_fill(~counted, -torch.inf)
        detections = self.heads.detect(features, proposals, objectness, size)
        described = self.heads.describe(features, *detections)
        feature = features[self.proposals.in_feature][0]
        return *detections, proposals, objectness, windows, feature, *described

    def _normalize(self, image: Tensor, size: Tensor) -> Tensor:
        """(h, w, 3) uint8 -> (3, h, w), with zeros in the padding as in the stock model."""
        x = image.permute(2, 0, 1).to(self.model.pixel_mean.dtype)
        x = (x - self.model.pixel_mean) / self.model.pixel_std
        rows, columns = (torch.arange(n, device=x.device) for n in x.shape[1:])
        inside = (rows < size[0])[:, None] & (columns < size[1])
        return x * inside


def _check(model: nn.Module) -> None:
    heads = (StandardROIHeads, HyperNetROIHeads, Res5ROIHeads)
    parts = {
        "MODEL.META_ARCHITECTURE": ("", (GeneralizedRCNN,)),
        "MODEL.PROPOSAL_GENERATOR.NAME": ("proposal_generator", (HyperNetProposals, RPN)),
        "MODEL.ROI_HEADS.NAME": ("roi_heads", heads),
    }
    for key, (name, expected) in parts.items():
        part = getattr(model, name) if name else model
        if type(part) not in expected:
            names = " or ".join(kind.__name__ for kind in expected)
            raise ValueError(f"{key} is {type(part).__name__}; only {names} can be exported")
    bases = {"mask": BaseMaskRCNNHead, "keypoint": BaseKeypointRCNNHead}
    for kind, base in bases.items():
        head = getattr(model.roi_heads, f"{kind}_head", None)
        if head is not None and not isinstance(head, base):
            raise ValueError(
                f"MODEL.ROI_{kind.upper()}_HEAD.NAME is {type(head).__name__}; only a "
                f"{base.__name__} can be exported"
            )
