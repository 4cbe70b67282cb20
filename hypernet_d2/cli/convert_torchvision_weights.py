"""Converts an ImageNet checkpoint of torchvision for MODEL.WEIGHTS.

The result fits detectron2's default input: images in BGR order with values 0 to 255, PIXEL_MEAN
[103.53, 116.28, 123.675] and PIXEL_STD [1, 1, 1]. The input of torchvision's models is RGB from 0
to 1, divided by a standard deviation per channel; the input channels of the first convolution are
therefore reversed, and its weights divided by 255 times that deviation. (detectron2's own converter
for ResNets does not change the weights, and needs INPUT.FORMAT "RGB", PIXEL_MEAN and PIXEL_STD.)

ResNet-50 and deeper need MODEL.RESNETS.STRIDE_IN_1X1 False, because torchvision has the stride in
the 3x3 convolution. The first two fully connected layers of vgg16 and alexnet (fc6 and fc7) become
fc1 and fc2 of the box head. They fit a head that pools the trunk's last map to 7x7 (vgg16) or 6x6
(alexnet) and has layers of 4096 units, as in the Faster R-CNN baselines. HyperNet's head pools
another map to another size, and needs --trunk-only. The 1000-way layer is always left out.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import get_model

from hypernet_d2.utils.files import atomic_write

from .arguments import CommandParser

# Standard deviation by which torchvision's models divide RGB values of 0 to 1. Their mean, times
# 255, is detectron2's default PIXEL_MEAN.
RGB_STD = (0.229, 0.224, 0.225)

# {index in torchvision's Sequential: name in our trunk or box head; None: 1000-way classifier}
PLAIN_NAMES = {
    "vgg16": {
        "features": {
            0: "conv1.conv1_1", 2: "conv1.conv1_2",
            5: "conv2.conv2_1", 7: "conv2.conv2_2",
            10: "conv3.conv3_1", 12: "conv3.conv3_2", 14: "conv3.conv3_3",
            17: "conv4.conv4_1", 19: "conv4.conv4_2", 21: "conv4.conv4_3",
            24: "conv5.conv5_1", 26: "conv5.conv5_2", 28: "conv5.conv5_3",
        },
        "classifier": {0: "box_head.fc1", 3: "box_head.fc2", 6: None},
    },
    "alexnet": {
        "features": {
            0: "conv1.conv1_1", 3: "conv2.conv2_1", 6: "conv3.conv3_1", 8: "conv4.conv4_1",
            10: "conv5.conv5_1",
        },
        "classifier": {1: "box_head.fc1", 4: "box_head.fc2", 6: None},
    },
}  # fmt: skip
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
ARCHITECTURES = (*PLAIN_NAMES, *RESNETS)


def new_name(architecture: str, key: str) -> str | None:
    """detectron2's name of a parameter or buffer of torchvision, or None if it has none.

    These are the 1000-way classifier and the batch counters, which FrozenBatchNorm2d lacks.
    """
    if architecture in PLAIN_NAMES:
        part, index, kind = key.split(".")
        module = PLAIN_NAMES[architecture][part][int(index)]
        return module and f"{module}.{kind}"
    if key.startswith("fc.") or key.endswith("num_batches_tracked"):
        return None
    key = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", key)
    key = re.sub(r"\bbn(\d)", r"conv\1.norm", key)
    key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    return key if key.startswith("res") else f"stem.{key}"


def check(architecture: str, state: Mapping[str, Tensor], source: str) -> None:
    """Compare a checkpoint with torchvision's model.

    Raises:
        ValueError: keys are missing, not expected, or of another shape. The batch counters may be
            missing, as in older files of torchvision.
    """
    with torch.device("meta"):
        expected = get_model(architecture, weights=None).state_dict()
    required = {key for key in expected if not key.endswith("num_batches_tracked")}
    shapes = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    faults = {
        "missing": sorted(required - set(state)),
        "not expected": sorted(set(state) - set(expected)),
        "of another shape": shapes,
    }
    found = [f"{what}: {', '.join(keys[:5])}" for what, keys in faults.items() if keys]
    if found:
        raise ValueError(
            f"{source} is not the {architecture} of torchvision; keys {'; '.join(found)}"
        )


def convert(
    architecture: str,
    state: Mapping[str, Tensor],
    *,
    trunk_only: bool = False,
    source: str = "the checkpoint",
) -> tuple[dict[str, Tensor], list[str]]:
    """Rename torchvision's state dict, and fold its preprocessing into the first convolution.

    Returns:
        The weights with detectron2's names, and the keys of ``state`` that were left out.

    Raises:
        ValueError: as :func:`check` does.
    """
    check(architecture, state, source)
    weights, left_out = {}, []
    for key, value in state.items():
        name = new_name(architecture, key)
        if name is None or (trunk_only and name.startswith("box_head.")):
            left_out.append(key)
        else:
            weights[name] = value.detach().float()
    first = "stem.conv1.weight" if architecture in RESNETS else "conv1.conv1_1.weight"
    std = 255 * torch.tensor(RGB_STD).reshape(1, 3, 1, 1)
    weights[first] = (weights[first] / std).flip(1)
    return weights, left_out


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__, "vgg16 vgg16-397923af.pth weights/vgg16.pkl --trunk-only")
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("input", type=Path, metavar="IN.pth", help="torchvision's checkpoint")
    parser.add_argument("output", type=Path, metavar="OUT.pkl", help="the result")
    parser.add_argument(
        "--trunk-only", action="store_true", help="leave out the fully connected layers (HyperNet)"
    )
    args = parser.parse_args(argv)
    if args.output.suffix != ".pkl":
        parser.error(f"{args.output}: expected a name that ends in .pkl, which detectron2 requires")
    try:
        state = torch.load(args.input, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise ValueError(f"{args.input}: cannot be read as weights only: {error}") from error
    weights, left_out = convert(
        args.architecture, state, trunk_only=args.trunk_only, source=str(args.input)
    )
    content = {
        "model": {name: value.numpy() for name, value in weights.items()},
        "__author__": "torchvision",
        "matching_heuristics": True,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output) as file:
        pickle.dump(content, file)
    print(f"{args.output}: {len(weights)} tensors; left out: {', '.join(left_out) or 'none'}")
