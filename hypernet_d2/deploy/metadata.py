"""The description of an exported model, stored in its file as json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from hypernet_d2.utils.images import fit_size

__all__ = ["FORMAT_VERSION", "INPUTS", "KEY", "OUTPUTS", "ModelInfo"]

# The key in ONNX's metadata_props, and the name of the extra file of a torch.export archive.
KEY = "hypernet_d2.json"
# Incremented whenever an older reader would misread a new file.
FORMAT_VERSION = 2
# Of the graph, in order; ExportableDetector.forward gives their shapes.
INPUTS = ("image", "size", "num_proposals")
OUTPUTS = ("boxes", "scores", "classes", "proposals", "objectness", "windows", "feature")

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
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"it has format version {version}, and this hypernet_d2 reads "
                    f"{FORMAT_VERSION}: export the model again, or install the version that "
                    f"exported it ({values.get('version')})"
                )
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
            if values["input_format"] not in ("BGR", "RGB"):
                raise ValueError(f"input_format is {values['input_format']!r}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path}: the metadata cannot be read: {error}") from error
        return cls(**values)
