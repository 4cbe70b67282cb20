"""Proposals from a regular grid of windows over the hyper feature (paper 3.2).

Shapes: ``N`` images, ``R`` windows of the grid, ``S`` sampled windows of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from hypernet_d2.layers import WindowGrid, WindowScorer
from hypernet_d2.layers.window_steps import few_steps

__all__ = ["HyperNetProposals"]

# With how many times the boxes that are wanted suppression begins.
_FIRST = 5


@PROPOSAL_GENERATOR_REGISTRY.register()
class HyperNetProposals(nn.Module):
    """Scores every window of a grid, and returns the best after non-maximum suppression.

    A window is pooled to 13x13, convolved (3x3x4) and fed to a 256-d layer with two siblings:
    objectness and box offsets (paper 3.2). In training a sample of the windows is scored with
    gradient; the dense pass over all windows, which feeds the detector, has none (DESIGN 2).
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        scorer: WindowScorer,
        matcher: Matcher,
        box2box_transform: Box2BoxTransform,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_topk: tuple[int, int],
        post_nms_topk: tuple[int, int],
        nms_thresh: float = 0.7,
        min_box_size: float = 0.0,
        loss_weight: float = 1.0,
        box_reg_loss_weight: float = 3.0,
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 1.0,
    ):
        """
        Args:
            in_feature: name of the map that is scored.
            scorer: scores windows; its ``grid`` says which.
            matcher: labels windows by their IoU with the objects.
            box2box_transform: the transform between windows and boxes.
            batch_size_per_image: windows sampled per image for the losses.
            positive_fraction: the largest fraction of positives among them, in [0, 1].
            pre_nms_topk, post_nms_topk: (training, test) numbers of windows that enter and of
                proposals that leave the suppression, per image.
            nms_thresh: IoU above which the worse of two proposals is dropped.
            min_box_size: proposals with a smaller side are dropped, in pixels.
            loss_weight: factor of both losses.
            box_reg_loss_weight: further factor of the box loss; the paper's lambda.
            box_reg_loss_type, smooth_l1_beta: as in the stock RPN.
        """
        super().__init__()
        self.in_feature = in_feature
        self.scorer = scorer
        self.matcher = matcher
        self.box2box_transform = box2box_transform
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        self.loss_weights = {
            "loss_rpn_cls": loss_weight,
            "loss_rpn_loc": loss_weight * box_reg_loss_weight,
        }
        self.box_reg_loss_type = box_reg_loss_type
        self.smooth_l1_beta = smooth_l1_beta

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        """``MODEL.HYPERNET.PROPOSALS``, and ``MODEL.RPN`` where the keys mean the same."""
        rpn, proposals = cfg.MODEL.RPN, cfg.MODEL.HYPERNET.PROPOSALS
        if len(rpn.IN_FEATURES) != 1 or rpn.IN_FEATURES[0] not in input_shape:
            raise ValueError(
                f"MODEL.RPN.IN_FEATURES is {rpn.IN_FEATURES}; HyperNetProposals takes exactly one "
                f"map of {list(input_shape)}"
            )
        shape = input_shape[rpn.IN_FEATURES[0]]
        grid = WindowGrid.from_sizes(
            proposals.SIZES,
            proposals.ASPECT_RATIOS,
            shape.stride,
            step=proposals.STEP,
            min_stride=proposals.MIN_STRIDE,
        )
        scorer = WindowScorer(
            shape.channels,
            grid,
            pooler_type=proposals.POOLER_TYPE,
            pooler_resolution=proposals.POOLER_RESOLUTION,
            sampling_ratio=proposals.POOLER_SAMPLING_RATIO,
            conv_channels=proposals.CONV_DIM,
            fc_dim=proposals.FC_DIM,
            conv_before_pooling=proposals.CONV_BEFORE_POOLING,
            conv_relu=proposals.CONV_RELU,
        )
        return {
            "in_feature": rpn.IN_FEATURES[0],
            "scorer": scorer,
            "matcher": Matcher(
                rpn.IOU_THRESHOLDS,
                rpn.IOU_LABELS,
                allow_low_quality_matches=proposals.ALLOW_LOW_QUALITY_MATCHES,
            ),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "batch_size_per_image": rpn.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": rpn.POSITIVE_FRACTION,
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "loss_weight": rpn.LOSS_WEIGHT,
            "box_reg_loss_weight": rpn.BBOX_REG_LOSS_WEIGHT,
            "box_reg_loss_type": rpn.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": rpn.SMOOTH_L1_BETA,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Returns:
            list[Instances]: per image ``proposal_boxes`` (clipped, in pixels) and
            ``objectness_logits``, best first.
            dict: in training ``loss_rpn_cls`` and ``loss_rpn_loc``, else empty.
        """
        feature = features[self.in_feature]
        grid, map_size = self.scorer.grid, tuple(feature.shape[-2:])
        windows = grid.boxes(map_size, feature.device)
        inside = [grid.inside(map_size, size, feature.device) for size in images.image_sizes]
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("HyperNetProposals needs gt_instances in training")
            losses = self.losses(feature, windows, inside, gt_instances)
        with torch.no_grad():
            proposals = self.predict_proposals(feature, windows, inside, images.image_sizes)
        return proposals, losses

    @torch.no_grad()
    def label_and_sample_windows(
        self, windows: Tensor, inside: Tensor, gt_boxes: Boxes
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Match the windows (R, 4) of one image with its objects, and sample some.

        A window is positive or negative as the IoU thresholds say (paper 3.4: above 0.45 with any
        object, below 0.3 with all); windows outside the image are never drawn.

        Returns:
            (S,) indices of the sampled windows, (S,) labels 1 or 0, and (S, 4) the box of the
            object that each matches best (meaningless for negatives).
        """
        matched, labels = self.matcher(pairwise_iou(gt_boxes, Boxes(windows)))
        labels[~inside] = -1
        positive, negative = subsample_labels(
            labels, self.batch_size_per_image, self.positive_fraction, 0
        )
        index = cat([positive, negative])
        if len(gt_boxes) == 0:
            return index, labels[index], windows[index]
        return index, labels[index], gt_boxes.tensor[matched[index]]

    def losses(
        self,
        feature: Tensor,
        windows: Tensor,
        inside: list[Tensor],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The paper's L_cls + lambda L_reg (3.4) over a sample of the windows of each image.

        Both are sums over the sample, divided by its nominal size, as in the stock RPN.
        """
        samples = [
            self.label_and_sample_windows(windows, inside_i, gt.gt_boxes)
            for inside_i, gt in zip(inside, gt_instances, strict=True)
        ]
        boxes = [windows[index] for index, _, _ in samples]
        labels = cat([label for _, label, _ in samples])
        logits, deltas = self.scorer.forward_boxes(feature, boxes)
        num_images, positive = len(samples), labels == 1
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", positive.sum().item() / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (~positive).sum().item() / num_images)

        box_loss = _dense_box_regression_loss(
            [cat(boxes)],
            self.box2box_transform,
            [deltas.float()[None]],
            [cat([target for _, _, target in samples])],
            positive[None],
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            logits.float(), labels.to(torch.float32), reduction="sum"
        )
        normalizer = self.batch_size_per_image * num_images
        return {
            "loss_rpn_cls": objectness_loss * self.loss_weights["loss_rpn_cls"] / normalizer,
            "loss_rpn_loc": box_loss * self.loss_weights["loss_rpn_loc"] / normalizer,
        }

    def predict_proposals(
        self,
        feature: Tensor,
        windows: Tensor,
        inside: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Score all windows, and of those inside each image decode, clip and suppress the best.

        Equal scores are taken in the order of the windows.
        """
        logits, deltas = self.scorer(feature)
        proposals = []
        for i, image_size in enumerate(image_sizes):
            scores, order = logits[i][inside[i]].float().sort(descending=True, stable=True)
            scores = scores[: self.pre_nms_topk[self.training]]
            best = inside[i].nonzero().squeeze(1)[order[: len(scores)]]
            boxes = self.box2box_transform.apply_deltas(deltas[i][best], windows[best])
            # The stock selection orders equal scores as it happens, so it gets ranks, which are
            # distinct; the product with zero keeps a score that is not finite for it to find.
            ranks = scores * 0 - torch.arange(len(scores), device=scores.device)
            proposal = self._suppress(boxes, ranks, image_size)
            proposal.objectness_logits = scores[-proposal.objectness_logits.long()]
            proposals.append(proposal)
        return proposals

    def _suppress(self, boxes: Tensor, ranks: Tensor, image_size: tuple[int, int]) -> Instances:
        """Clips and suppresses boxes (K, 4), the best first, and keeps as many as are asked for."""
        wanted = self.post_nms_topk[self.training]
        # What is kept of the best few is kept of all, and the time of suppression grows with the
        # square: so a CPU begins with a part. A training looks for infinite values in all.
        some = len(boxes) if self.training or few_steps(boxes.device) else _FIRST * wanted
        while True:
            (proposal,) = find_top_rpn_proposals(
                [boxes[None, :some]],
                [ranks[None, :some]],
                [image_size],
                self.nms_thresh,
                some,
                wanted,
                self.min_box_size,
                self.training,
            )
            if some >= len(boxes) or len(proposal) == wanted:
                return proposal
            some *= 2
