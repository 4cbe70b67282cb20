"""The intermediate results of HyperNet for one image."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hypernet_d2.engine import Predictor

from ..views import output_of

__all__ = ["Trace", "trace"]


class Trace(NamedTuple):
    """Intermediate results for one image. The image and the maps are without padding.

    Shapes: ``R`` windows, ``K`` proposals, ``C`` channels, ``h`` x ``w`` cells, ``p`` RoI bins.
    """

    image: np.ndarray  # (H, W, 3) uint8, RGB, as resized for the network
    padded_size: tuple[int, int]  # (H, W) of the network's input
    maps: dict[str, Tensor]  # {name: (1, C, h, w)}, the trunk's maps that are fused
    hyper: Tensor  # (C, h, w), the hyper feature
    map_size: tuple[int, int]  # (h, w) of the hyper feature with padding
    objectness: Tensor  # (R,) in [0, 1], of all windows
    proposals: Tensor  # (K, 4), x0, y0, x1, y1 in pixels of the network's input, best first
    proposal_objectness: Tensor  # (K,) in [0, 1]
    regions: Tensor  # (K, C, p, p), pooled
    probabilities: Tensor  # (K, classes + 1), the last of the background


@torch.no_grad()
def trace(predictor: Predictor, image: np.ndarray) -> Trace:
    """Run a HyperNet on an image (H, W, 3), BGR, and keep its intermediate results."""
    model = predictor.model
    generator, heads = model.proposal_generator, model.roi_heads
    modules = {
        "trunk": model.backbone.trunk,
        "backbone": model.backbone,
        "scorer": generator.scorer,
        "proposals": generator,
        "pooler": heads.box_pooler,
        "predictor": heads.box_predictor,
    }
    with ExitStack() as stack:
        seen = {key: stack.enter_context(output_of(part)) for key, part in modules.items()}
        predictor(image)
    out = {key: value["output"] for key, value in seen.items()}
    (proposals,), _ = out["proposals"]
    h, w = proposals.image_size
    strides = model.backbone.hyper_feature.in_strides
    hyper = out["backbone"][generator.in_feature]
    probabilities, _ = out["predictor"]
    return Trace(
        image=predictor.aug.get_transform(image).apply_image(image)[:, :, ::-1],
        padded_size=tuple(seen["backbone"]["inputs"][0].shape[-2:]),
        maps={name: _crop(out["trunk"][name], h, w, stride) for name, stride in strides.items()},
        hyper=_crop(hyper, h, w, model.backbone.hyper_feature.stride)[0],
        map_size=tuple(hyper.shape[-2:]),
        objectness=out["scorer"][0][0].sigmoid().cpu(),
        proposals=proposals.proposal_boxes.tensor.cpu(),
        proposal_objectness=proposals.objectness_logits.sigmoid().cpu(),
        regions=out["pooler"].cpu(),
        probabilities=probabilities.softmax(dim=1).cpu(),
    )


def _crop(x: Tensor, h: int, w: int, stride: int) -> Tensor:
    """The part of a map (N, C, ...) that an image of h x w pixels covers, on the CPU."""
    return x[..., : -(-h // stride), : -(-w // stride)].float().cpu()
