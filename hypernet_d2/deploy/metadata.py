"""The description of an exported model, stored in its file as json."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields

from hypernet_d2.utils.images import fit_size

__all__ = ["FORMAT_VERSION", "INPUTS", "KEY", "OUTPUTS", "ModelInfo"]

# The key in ONNX's metadata_props, and the name of the extra file of a torch.export archive.
KEY = "hypernet_d2.json"
# Incremented whenever an older reader would misread a new file. Version 2 lacks the properties of
# ModelInfo that have defaults.
FORMAT_VERSION = 3
READ_VERSIONS = (2, 3)
# Of the graph, in order; ExportableDetector.forward gives their shapes.
INPUTS = ("image", "size", "num_proposals")
OUTPUTS = ("boxes", "scores", "classes", "proposals", "objectness", "windows", "feature")
HEADS = ("masks", "part_masks", "keypoint_heat_maps")

# Integers, and the least value of each.
_LEAST = {
    "min_size": 0,
    "max_size": 1,
    "max_proposals": 1,
    "max_detections": 1,
    "size_divisibility": 1,
    "feature_stride": 1,
}
_MOST = 10**6


@dataclass(frozen=True)
class ModelInfo:
    """Properties of an exported model."""

    classes: tuple[str, ...]
    input_format: str  # order of the input's channels, "BGR" or "RGB"
    canvas: tuple[int, int]  # largest height and width of the padded image in pixels
    size_divisibility: int  # the resized image is padded to multiples of this number of pixels
    min_size: int  # the short side is scaled to this (0: not scaled), ...
    max_size: int  # ... but the long side to no more than this
    score_threshold: float  # least score of the graph's detections
    max_proposals: int
    max_detections: int
    feature_stride: int  # stride of the hyper feature in pixels
    config: str  # name of the config that the model was built from
    version: str  # of hypernet_d2 that exported it
    score_thresholds: tuple[float, ...] = ()  # by default, of each class; or none of them
    heads: tuple[str, ...] = ()  # outputs after OUTPUTS, of HEADS
    keypoint_margin: float = 0.0  # of a keypoint's heat map around its box, as a share of its side
    resizes: bool = False  # the input is the image as it is, which the graph resizes and pads

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in order."""
        return OUTPUTS + self.heads

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width to which an image of (height, width) is resized before detection."""
        return fit_size(size, self.min_size, self.max_size, self.canvas)

    def canvas_conflict(self, size: tuple[int, int]) -> str:
        """Why an image of (height, width) is not resized as in detectron2; "" if it is."""
        stock, resized = fit_size(size, self.min_size, self.max_size), self.resized(size)
        if stock == resized:
            return ""
        return (
            f"detectron2 resizes it to {stock[0]} x {stock[1]} (height x width), which does not "
            f"fit the canvas of {self.canvas[0]} x {self.canvas[1]}: the file resizes it to "
            f"{resized[0]} x {resized[1]}; export with a larger --size"
        )

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, path: str) -> ModelInfo:
        """Read and check the result of `to_json`.

        Raises:
            ValueError: the text is no such json, or of a later version; ``path`` is named.
        """
        try:
            values = json.loads(text)
            version = values.pop("format_version")
            if version not in READ_VERSIONS:
                raise ValueError(
                    f"it has format version {version}, and this hypernet_d2 reads "
                    f"{READ_VERSIONS}: export the model again, or install the version that "
                    f"exported it ({values.get('version')})"
                )
            if version < FORMAT_VERSION:
                values = {**_DEFAULTS, **values}
            names = {field.name for field in fields(cls)}
            if set(values) != names:
                raise ValueError(f"expected the metadata {sorted(names)}, got {sorted(values)}")
            values["classes"] = tuple(str(name) for name in values["classes"])
            height, width = (int(side) for side in values["canvas"])
            values["canvas"] = (height, width)
            for name, least in _LEAST.items():
                if type(values[name]) is not int or not least <= values[name] <= _MOST:
                    raise ValueError(f"{name} is {values[name]!r}, expected {least} or more")
            if not 0 <= values["score_threshold"] <= 1:
                raise ValueError(f"score_threshold is {values['score_threshold']!r}")
            divisor = values["size_divisibility"]
            if any(not 0 < side <= _MOST or side % divisor for side in (height, width)):
                raise ValueError(
                    f"canvas is {values['canvas']!r}, expected multiples of size_divisibility, "
                    f"{divisor}"
                )
            _check_heads(values)
            if values["input_format"] not in ("BGR", "RGB"):
                raise ValueError(f"input_format is {values['input_format']!r}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path}: the metadata cannot be read: {error}") from error
        return cls(**values)


_DEFAULTS = {
    field.name: field.default for field in fields(ModelInfo) if field.default is not MISSING
}


def _check_heads(values: dict) -> None:
    """Check the properties of format version 3, and convert lists to tuples."""
    thresholds = values["score_thresholds"] = tuple(values["score_thresholds"])
    if len(thresholds) not in (0, len(values["classes"])) or not all(
        type(value) in (int, float) and 0 <= value <= 1 for value in thresholds
    ):
        raise ValueError(
            f"score_thresholds is {thresholds}, expected a number from 0 to 1 for each class"
        )
    heads = values["heads"] = tuple(values["heads"])
    if not set(heads) <= set(HEADS):
        raise ValueError(f"heads is {heads}, expected names of {HEADS}")
    margin = values["keypoint_margin"]
    if type(margin) not in (int, float) or not 0 <= margin <= 10:
        raise ValueError(f"keypoint_margin is {margin!r}, expected 0 to 10")
    if type(values["resizes"]) is not bool:
        raise ValueError(f"resizes is {values['resizes']!r}, expected true or false")
