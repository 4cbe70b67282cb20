"""What an exported model says about itself, kept inside its file as json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

__all__ = ["FORMAT_VERSION", "INPUTS", "KEY", "OUTPUTS", "ModelInfo"]

# Name of the entry: in ONNX's metadata_props, and of the extra file of a torch.export archive.
KEY = "hypernet_d2.json"
# Raised whenever a file would be misread by an older reader.
FORMAT_VERSION = 1
# Of the graph, in order; see ExportableDetector.forward for shapes.
INPUTS = ("image", "size", "num_proposals")
OUTPUTS = ("boxes", "scores", "classes", "proposals", "objectness", "windows", "feature")

# Whole numbers, and the least of each.
_LEAST = {
    "min_size": 0,
    "max_size": 1,
    "max_proposals": 1,
    "max_detections": 1,
    "feature_stride": 1,
}
_MOST = 10**6


@dataclass(frozen=True)
class ModelInfo:
    """What a caller, and the detector, have to know of a model."""

    classes: tuple[str, ...]
    input_format: str  # order of the channels that the graph takes, "BGR" or "RGB"
    canvas: tuple[int, int]  # height and width in pixels of what the graph takes
    min_size: int  # the short side is scaled to this, 0 not at all, ...
    max_size: int  # ... but the long side at most to this
    score_threshold: float  # no detection with a score below this leaves the graph
    max_proposals: int
    max_detections: int
    feature_stride: int  # pixels a cell of the hyper feature
    config: str  # name of the config that the model was built from
    version: str  # of hypernet_d2 that exported it

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, path: str) -> ModelInfo:
        """Read and check what `to_json` wrote.

        Raises:
            ValueError: the text is no such json, or a later version's; `path` is named.
        """
        try:
            values = json.loads(text)
            version = values.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"is of format version {version}, and this hypernet_d2 reads {FORMAT_VERSION}: "
                    "export it anew, or install the version that exported it "
                    f"({values.get('version')})"
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
            if not (0 < height <= _MOST and 0 < width <= _MOST):
                raise ValueError(f"canvas is {values['canvas']!r}")
            if values["input_format"] not in ("BGR", "RGB"):
                raise ValueError(f"input_format is {values['input_format']!r}")
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path}: the metadata cannot be read: {error}") from error
        return cls(**values)
