"""Region proposals from a regular grid of windows over the hyper feature (paper 3.2).

Shape shorthand: ``N`` images, ``R`` windows of the grid, ``S`` sampled windows, ``K`` boxes.
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

from hypernet_d2.config import hypernet_node
from hypernet_d2.layers import WindowGrid, WindowScorer
from hypernet_d2.layers.window_steps import use_large_chunks

__all__ = ["HyperNetProposals"]

# NMS on a CPU starts with this number of boxes per proposal that is wanted.
NUM_FIRST_BOXES = 5


@PROPOSAL_GENERATOR_REGISTRY.register()
class HyperNetProposals(nn.Module):
    """Scores every window of a grid and returns the best boxes after non-maximum suppression.

    A window is pooled to 13x13, convolved (3x3x4) and fed to a 256-d layer with two sibling
    outputs, objectness and box deltas (paper 3.2). In training, the losses are computed on a sample
    of the windows. The proposals for the detector come from a pass over all windows, without
    gradient.
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
            in_feature: name of the input feature map.
            scorer: scores the windows of its ``grid``.
            matcher: labels windows by their IoU with the ground truth boxes.
            box2box_transform: the transform from windows to boxes.
            batch_size_per_image: number of windows per image to sample for the losses.
            positive_fraction: maximum fraction of positive windows in the sample, in [0, 1].
            pre_nms_topk: (train, test) number of top scored windows per image to keep before NMS.
            post_nms_topk: (train, test) number of proposals per image to keep after NMS.
            nms_thresh: IoU threshold of NMS.
            min_box_size: proposals with a shorter side are removed, in pixels.
            loss_weight: weight of both losses.
            box_reg_loss_weight: additional weight of the box regression loss; the paper's lambda.
            box_reg_loss_type: as in the stock RPN.
            smooth_l1_beta: as in the stock RPN.
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
        """From ``MODEL.HYPERNET.PROPOSALS``, and ``MODEL.RPN`` for keys of the same meaning."""
        rpn, proposals = cfg.MODEL.RPN, hypernet_node(cfg).PROPOSALS
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
        Args:
            images: input images.
            features: feature maps by name, (N, C, H, W).
            gt_instances: per image ``gt_boxes``; needed in training.

        Returns:
            proposals: per image ``proposal_boxes`` (clipped, in pixels) and ``objectness_logits``,
                sorted by score.
            losses: in training ``loss_rpn_cls`` and ``loss_rpn_loc``, else empty.
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
        """Match the windows of one image with the ground truth, and sample windows for the losses.

        The matcher's IoU thresholds label a window (paper 3.4: positive above 0.45 with any object,
        negative below 0.3 with all). Windows outside the image are never sampled.

        Args:
            windows: (R, 4).
            inside: (R,) bool, see :meth:`WindowGrid.inside`.
            gt_boxes: ground truth boxes of the image.

        Returns:
            index: (S,) indices of the sampled windows.
            labels: (S,), 1 for positive, 0 for negative.
            targets: (S, 4), the matched ground truth box; undefined for negatives.
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
        """L_cls + lambda L_reg (paper 3.4) over a sample of the windows of each image.

        Both are sums over the sample, divided by ``batch_size_per_image * N`` as in the stock RPN.
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
        """Score all windows, decode the top scored ones inside each image, and apply NMS.

        Windows of equal score are ordered by their index.
        """
        logits, deltas = self.scorer(feature)
        proposals = []
        for i, image_size in enumerate(image_sizes):
            scores, order = logits[i][inside[i]].float().sort(descending=True, stable=True)
            scores = scores[: self.pre_nms_topk[self.training]]
            top = inside[i].nonzero().squeeze(1)[order[: scores.shape[0]]]
            boxes = self.box2box_transform.apply_deltas(deltas[i][top], windows[top])
            # The stock function does not keep the order of equal scores, so it gets distinct ranks
            # instead. Adding 0 * scores lets it detect scores that are not finite.
            ranks = scores * 0 - torch.arange(scores.shape[0], device=scores.device)
            proposal = self._nms(boxes, ranks, image_size)
            proposal.objectness_logits = scores[-proposal.objectness_logits.long()]
            proposals.append(proposal)
        return proposals

    def _nms(self, boxes: Tensor, ranks: Tensor, image_size: tuple[int, int]) -> Instances:
        """Clip boxes (K, 4), sorted by rank, and apply NMS; keeps at most ``post_nms_topk``."""
        pre_nms_topk = self.pre_nms_topk[self.training]
        post_nms_topk = self.post_nms_topk[self.training]
        # NMS is greedy: the boxes that it keeps of the first n are the first that it keeps of all.
        # Its time on a CPU grows with n^2, so inference on a CPU starts with a small n. Training
        # looks at all boxes, to find values that are not finite.
        num_boxes = NUM_FIRST_BOXES * post_nms_topk
        if self.training or use_large_chunks(boxes.device):
            num_boxes = pre_nms_topk
        while True:
            (proposal,) = find_top_rpn_proposals(
                [boxes[None, :num_boxes]],
                [ranks[None, :num_boxes]],
                [image_size],
                self.nms_thresh,
                pre_nms_topk,
                post_nms_topk,
                self.min_box_size,
                self.training,
            )
            if num_boxes >= pre_nms_topk or num_boxes >= boxes.shape[0]:
                return proposal
            if len(proposal) == post_nms_topk:
                return proposal
            num_boxes *= 2
