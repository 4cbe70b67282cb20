"""Runs exported models on onnxruntime, OpenVINO or PyTorch.

It imports neither detectron2 nor the training code.

``tools/export_model.py`` writes the files. Detections in an image or a folder are printed and drawn
by ``python -m hypernet_d2.deploy MODEL IMAGE --output OUT``.
"""

from pathlib import Path

from hypernet_d2.utils.drawing import draw_detections
from hypernet_d2.utils.images import read_image

from .detector import Detections, Detector, Instances, Stages
from .metadata import ModelInfo

__all__ = [
    "DIGITS_MODEL",
    "Detections",
    "Detector",
    "Instances",
    "ModelInfo",
    "Stages",
    "draw_detections",
    "read_image",
]

# A small model that detects digits, to try deployment with; see models/README.md.
DIGITS_MODEL = Path(__file__).parent / "models" / "digits.onnx"
