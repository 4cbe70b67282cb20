"""A graph with the inputs and outputs of an exported detector, which finds boxes by arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypernet_d2.deploy import ModelInfo
from hypernet_d2.deploy.metadata import KEY, OUTPUTS
from tests.helpers import captures

INFO = ModelInfo(
    classes=("dark", "bright"),
    input_format="RGB",
    canvas=(48, 64),
    size_divisibility=4,
    min_size=48,
    max_size=64,
    score_threshold=0.1,
    max_proposals=4,
    max_detections=3,
    feature_stride=4,
    config="toy.yaml",
    version="0.0.0",
)


class Toy(nn.Module):
    """One proposal a quarter of the image; what is detected tells what the graph was given.

    Detection 0 is the whole image, with the mean of the first channel as its score; detection 1,
    with score 0.15, is the first quarter and is there where 2 proposals or more are looked at.
    """

    def forward(self, image: Tensor, size: Tensor, num_proposals: Tensor) -> tuple[Tensor, ...]:
        height, width = (side.float() for side in size)
        zero = height * 0
        quarters = torch.stack(
            [
                torch.stack(
                    [x * width / 2, y * height / 2, (x + 1) * width / 2, (y + 1) * height / 2]
                )
                for y in (0, 1)
                for x in (0, 1)
            ]
        )
        whole = torch.stack([zero, zero, width, height])
        mean = image[:, :, 0].float().sum() / (255 * height * width)
        second = torch.where(num_proposals >= 2, zero + 0.15, zero)
        scores = torch.stack([mean, second, zero])
        boxes = torch.stack([whole, quarters[0], whole * 0])
        classes = (scores > 0.5).long()
        counted = torch.arange(4) < num_proposals
        objectness = torch.where(counted, -torch.arange(4).float(), -torch.inf)
        feature = image[::4, ::4].permute(2, 0, 1).float()
        return boxes, scores, classes, quarters, objectness, quarters, feature


def program() -> torch.export.ExportedProgram:
    if captures.args[0]:
        pytest.skip(captures.kwargs["reason"])
    inputs = (torch.zeros(*INFO.canvas, 3, dtype=torch.uint8), torch.tensor(INFO.canvas))
    sides = {i: 4 * torch.export.Dim(f"side{i}", max=side // 4) for i, side in enumerate((48, 64))}
    shapes = {"image": sides, "size": None, "num_proposals": None}
    exported = torch.export.export(Toy(), (*inputs, torch.tensor(4)), dynamic_shapes=shapes)
    exported._guards_code.clear()
    exported.example_inputs = None
    return exported


def write_torch(path: Path, info: str | None = None) -> Path:
    extra = {KEY: INFO.to_json() if info is None else info}
    torch.export.save(program(), path, extra_files=extra)
    return path


def write_onnx(path: Path, info: str | None = None) -> Path:
    names = ["image", "size", "num_proposals"]
    result = torch.onnx.export(
        program(), dynamo=True, input_names=names, output_names=list(OUTPUTS), verbose=False
    )
    result.model.metadata_props[KEY] = INFO.to_json() if info is None else info
    result.save(path, external_data=False)
    return path
