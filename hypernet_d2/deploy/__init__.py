"""Runs exported models on onnxruntime or PyTorch; imports neither detectron2 nor the training code.

Files come from ``tools/export_model.py``. ``python -m hypernet_d2.deploy MODEL IMAGE --output OUT``
draws what a model detects.
"""

from pathlib import Path

from hypernet_d2.utils.drawing import draw_detections
from hypernet_d2.utils.images import read_image

from .detector import Detections, Detector, Stages
from .metadata import ModelInfo

__all__ = [
    "DIGITS_MODEL",
    "Detections",
    "Detector",
    "ModelInfo",
    "Stages",
    "draw_detections",
    "read_image",
]

# A small model of the digits, for a first look; models/README.md says how it was made.
DIGITS_MODEL = Path(__file__).parent / "models" / "digits.onnx"
