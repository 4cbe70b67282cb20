"""Proposals of one image as a graph: those of HyperNetProposals and of detectron2's RPN.

Shape shorthand: ``(H, W)`` canvas in pixels, ``R`` windows or anchors of the canvas, ``K``
proposals.
"""

from __future__ import annotations

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes
from torch import Tensor, nn

from hypernet_d2.modeling.proposal_generator.hypernet_proposals import HyperNetProposals

from .operations import clip, nms_in_order

__all__ = ["ExportableProposals", "ExportableRPN", "ExportableWindows"]

# The boxes, their logits, and the windows or anchors from which they were regressed.
Proposals = tuple[Tensor, Tensor, Tensor]


class ExportableProposals(nn.Module):
    """Proposals with fixed shapes: boxes (K, 4), objectness logits (K,), windows (K, 4).

    Attributes:
        in_feature: the map that is shown as "the feature" of a model.
    """

    in_feature: str

    def __init__(self, generator: HyperNetProposals | RPN):
        super().__init__()
        self.generator = generator

    def select(
        self, logits: Tensor, deltas: Tensor, windows: Tensor, size: Tensor, candidates: int
    ) -> Proposals:
        """NMS of the best ``candidates`` of (R,) logits, whose order of equal values is kept.

        Args:
            logits: -inf for windows that are not valid.
            deltas, windows: (R, 4).
            size: (2,), height and width of the image.
        """
        generator = self.generator
        logits, best = (x[:candidates] for x in logits.sort(descending=True, stable=True))
        windows = windows[best]
        boxes = generator.box2box_transform.apply_deltas(deltas[best], windows)
        valid = logits.isfinite() & boxes.isfinite().all(dim=1)
        boxes = clip(boxes, size)
        valid = valid & Boxes(boxes).nonempty(threshold=generator.min_box_size)
        count = min(generator.post_nms_topk[False], candidates)
        kept, valid = nms_in_order(boxes, valid, generator.nms_thresh, count)
        return boxes[kept], logits[kept].masked_fill(~valid, -torch.inf), windows[kept]


class ExportableWindows(ExportableProposals):
    """Those of HyperNetProposals. The windows are those of the canvas, whose number is fixed."""

    def __init__(self, generator: HyperNetProposals, canvas: tuple[int, int]):
        super().__init__(generator)
        self.in_feature = generator.in_feature
        self.map_size = tuple(side // generator.scorer.grid.feature_stride for side in canvas)

    def forward(self, features: dict[str, Tensor], size: Tensor) -> Proposals:
        feature, grid = features[self.in_feature], self.generator.scorer.grid
        windows = grid.boxes(self.map_size, feature.device)
        logits, deltas = (x[0] for x in self.generator.scorer(feature, self.map_size))
        inside = grid.inside(self.map_size, size, feature.device)
        logits = logits.float().masked_fill(~inside, -torch.inf)
        candidates = min(self.generator.pre_nms_topk[False], len(windows))
        return self.select(logits, deltas, windows, size, candidates)


class ExportableRPN(ExportableProposals):
    """Those of detectron2's RPN, on one map or several.

    The scores of each map are padded to the map of the canvas, so that the number of anchors is
    fixed; the padding is never selected.
    """

    def __init__(self, generator: RPN, features: dict[str, Tensor]):
        """
        Args:
            generator: in evaluation mode.
            features: the maps (1, C, h, w) of an image of the canvas's size.
        """
        super().__init__(generator)
        self.in_feature = generator.in_features[0]
        maps = [features[name] for name in generator.in_features]
        self.map_sizes = [tuple(x.shape[2:]) for x in maps]
        for level, anchors in enumerate(generator.anchor_generator(maps)):
            self.register_buffer(f"anchors{level}", anchors.tensor, persistent=False)

    def forward(self, features: dict[str, Tensor], size: Tensor) -> Proposals:
        generator = self.generator
        all_logits, all_deltas = generator.rpn_head([features[f] for f in generator.in_features])
        levels = []
        for level, map_size in enumerate(self.map_sizes):
            anchors = getattr(self, f"anchors{level}")
            logits = _pad(all_logits[level][0], map_size, -torch.inf)
            deltas = _pad(all_deltas[level][0], map_size, 0.0)
            deltas = deltas.view(-1, 4, *map_size).permute(2, 3, 0, 1).reshape(-1, 4)
            candidates = min(generator.pre_nms_topk[False], len(anchors))
            # As in the stock function; a full sort of a large map takes longer.
            logits, best = logits.permute(1, 2, 0).flatten().topk(candidates)
            levels.append(self.select(logits, deltas[best], anchors[best], size, candidates))
        if len(levels) == 1:
            return levels[0]
        boxes, logits, anchors = (torch.cat(x) for x in zip(*levels, strict=True))
        count = min(generator.post_nms_topk[False], len(logits))
        logits, best = (x[:count] for x in logits.sort(descending=True, stable=True))
        return boxes[best], logits, anchors[best]


def _pad(x: Tensor, size: tuple[int, int], value: float) -> Tensor:
    """(C, h, w) -> (C, H, W), padded at the bottom and at the right.

    By index, since the sum of h and its padding would not count as a fixed number.
    """
    rows, columns = (torch.arange(side, device=x.device) for side in size)
    inside = (rows < x.shape[1])[:, None] & (columns < x.shape[2])
    x = x.index_select(1, rows.clamp(max=x.shape[1] - 1))
    x = x.index_select(2, columns.clamp(max=x.shape[2] - 1))
    return x.float().masked_fill(~inside, value)
