"""Masks, parts and keypoints by NumPy are those of detectron2."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypernet_d2.deploy.heat_maps import find_keypoints, paste_masks, paste_parts

pytestmark = pytest.mark.detectron2

SIZE = (48, 64)
# Inside the image, at its borders, thin, tiny.
BOXES = torch.tensor(
    [[3.2, 4.7, 40.1, 30.9], [0, 0, 64, 48], [50.5, 20.25, 64, 48], [10, 5, 11.5, 45], [7, 8, 8, 9]]
)


def smooth_maps(count: int, labels: int, side: int) -> torch.Tensor:
    torch.manual_seed(0)
    noise = torch.randn(count, labels, 4, 4)
    return torch.nn.functional.interpolate(noise, (side, side), mode="bicubic")


@pytest.mark.parametrize("side", [14, 28, 50])
def test_masks(side):
    from detectron2.layers import paste_masks_in_image

    masks = smooth_maps(len(BOXES), 1, side).sigmoid()[:, 0]
    expected = paste_masks_in_image(masks, BOXES, SIZE).numpy()
    found = paste_masks(masks.numpy(), BOXES.numpy(), SIZE)
    assert found.dtype == bool and expected.any(axis=(1, 2)).sum() > 2
    assert (found != expected).sum() <= 1  # a probability of 0.5 up to rounding


def test_parts():
    from detectron2.structures import Boxes, Instances

    from hypernet_d2.modeling.roi_heads import paste_parts as paste_parts_of_instances

    masks = smooth_maps(len(BOXES), 3, 20).sigmoid()
    instances = Instances(SIZE, pred_boxes=Boxes(BOXES), pred_part_masks=masks)
    expected = paste_parts_of_instances(instances).numpy()
    found = paste_parts(masks.numpy(), BOXES.numpy(), SIZE)
    assert found.dtype == np.uint8 and set(np.unique(expected)) == {0, 1, 2, 3}
    assert (found != expected).mean() < 1e-3


def test_keypoints():
    from detectron2.structures.keypoints import heatmaps_to_keypoints

    maps = 5 * smooth_maps(len(BOXES), 4, 28)
    expected = heatmaps_to_keypoints(maps, BOXES)[:, :, [0, 1, 3]].numpy()
    found = find_keypoints(maps.numpy(), BOXES.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_no_box():
    none = np.zeros((0, 4), np.float32)
    assert paste_masks(np.zeros((0, 14, 14), np.float32), none, SIZE).shape == (0, *SIZE)
    assert paste_parts(np.zeros((0, 3, 14, 14), np.float32), none, SIZE).shape == (0, *SIZE)
    assert find_keypoints(np.zeros((0, 4, 14, 14), np.float32), none).shape == (0, 4, 3)
