"""The ways in which files of others enter the package, one file of each damaged.

Each ``prepare`` function writes the files of a case and returns the function that reads them.
"""

from __future__ import annotations

import argparse
import functools
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from .damages import HEIGHT, WIDTH, image_bytes

Damaging = Callable[[bytes], bytes]

VOC_XML = (
    "<annotation><folder>x</folder><filename>a.jpg</filename><path>/home/me/a.jpg</path>"
    f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    "<object><name>cell</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin>"
    "<xmax>15</xmax><ymax>16</ymax></bndbox></object><object><name>dust</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def prepare_voc(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    from hypernet_d2.data import register_voc_style

    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    image = "png" if kind == "png" else "jpeg"
    files = {"xml": "Annotations/b.xml", "split": "ImageSets/Main/all.txt"}
    for stem in "ab":
        (root / f"JPEGImages/{stem}.{image}").write_bytes(image_bytes(image))
        (root / f"Annotations/{stem}.xml").write_text(VOC_XML)
    (root / "ImageSets/Main/all.txt").write_text("a\nb\n")
    _damage(root / files.get(kind, f"JPEGImages/b.{image}"), damage)

    def take() -> None:
        _forget("fuzz")
        register_voc_style("fuzz", root, "all", ["cell", "dust"])
        _train_on("fuzz")

    return take


def coco_content() -> dict:
    from pycocotools import mask

    disc = np.hypot(*np.mgrid[-15:15, -20:20]) < 9
    code = mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    shapes = (
        [[5, 6, 15, 6, 15, 18]],
        {"size": [HEIGHT, WIDTH], "counts": [31, 40, HEIGHT * WIDTH - 71]},
        {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()},
    )
    annotations = [
        {
            "id": i + 1,
            "image_id": 1 + i % 2,
            "category_id": 1 + i % 2,
            "bbox": [5, 6, 10, 12],
            "area": 120,
            "iscrowd": int(i == 3),
            "segmentation": shapes[i % 3],
            "keypoints": [8, 8, 2, 9, 9, 1],
            "num_keypoints": 2,
        }
        for i in range(4)
    ]
    images = [
        {"id": i + 1, "file_name": f"{name}.jpeg", "height": HEIGHT, "width": WIDTH}
        for i, name in enumerate("ab")
    ]
    categories = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dust"}]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def prepare_coco(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    from detectron2.data.datasets import register_coco_instances

    content = coco_content()
    image = "png" if kind == "png" else "jpeg"
    for entry in content["images"]:
        entry["file_name"] = str(Path(entry["file_name"]).with_suffix(f".{image}"))
        (root / entry["file_name"]).write_bytes(image_bytes(image))
    (root / "labels.json").write_text(json.dumps(content))
    _damage(root / ("labels.json" if kind == "json" else f"b.{image}"), damage)

    def take() -> None:
        _forget("fuzz")
        metadata = {"keypoint_names": ["p", "q"], "keypoint_flip_map": [["p", "q"]]}
        register_coco_instances("fuzz", metadata, str(root / "labels.json"), str(root))
        _train_on("fuzz", use_instance_mask=True, use_keypoint=True, instance_mask_format="bitmask")
        _evaluate_on("fuzz", root)

    return take


def _forget(name: str) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def _train_on(name: str, **options) -> None:
    """Load the set as the trainer does, and map each of its images."""
    from detectron2.data import transforms as T

    from hypernet_d2.data import NamedErrorDatasetMapper, load_dataset

    records = load_dataset(name, evaluated=True)
    if options.get("use_keypoint"):
        options["keypoint_hflip_indices"] = np.array([1, 0])
    resize = T.ResizeShortestEdge(32, 100)
    mapper = NamedErrorDatasetMapper(True, augmentations=[resize], image_format="BGR", **options)
    for record in records:
        mapped = mapper(record)
        h, w = mapped["image"].shape[1:]
        boxes = mapped["instances"].gt_boxes.tensor.numpy()
        assert np.isfinite(boxes).all() and (boxes >= 0).all()
        assert (boxes <= [w, h, w, h]).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        assert (mapped["instances"].gt_classes.numpy() < 2).all()


def _evaluate_on(name: str, root: Path) -> None:
    """Compute COCO's box AP of the ground truth itself."""
    import torch
    from detectron2.structures import Boxes, BoxMode, Instances

    from hypernet_d2.data import load_dataset
    from hypernet_d2.evaluation import build_evaluator
    from tests.helpers import tiny_cfg

    evaluator = build_evaluator(tiny_cfg(), name, str(root / "inference"))
    evaluator.reset()
    for record in load_dataset(name):
        found = Instances((record["height"], record["width"]))
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]]).long()
        evaluator.process([record], [{"instances": found}])
    evaluator.evaluate()


def prepare_demo(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    """The files of demo.py, with a model that shows the image unchanged."""
    from hypernet_d2.cli.views import View

    path = root / f"photo.{kind}"
    path.write_bytes(image_bytes(kind))
    _damage(path, damage)
    demo = _demo()

    def take() -> None:
        output = root / "output"
        output.mkdir()
        options = {"webcam": None, "codec": "mp4v", "track": False}
        args = argparse.Namespace(files=[path], output=output, **options)
        show = lambda image: View(np.ascontiguousarray(image[:, :, ::-1]), "")  # noqa: E731
        failures = demo["run"](args, show, None)
        if failures:
            raise ValueError(failures[0])
        (picture,) = output.iterdir()
        with Image.open(picture) as drawn:
            drawn.load()

    return take


@functools.cache
def _demo() -> dict:
    from hypernet_d2.cli import detect

    module = vars(detect)
    quiet = lambda sources, **_: sources  # noqa: E731
    module["run"].__globals__["tqdm"] = quiet
    return module


def prepare_deploy(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    from hypernet_d2.deploy import read_image

    path = root / f"photo.{kind}"
    path.write_bytes(image_bytes(kind))
    _damage(path, damage)

    def take() -> None:
        image = read_image(path)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    return take


def prepare_checkpoint(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    import torch

    from hypernet_d2.checkpoint import HyperNetCheckpointer

    path = root / f"model.{kind}"
    weights = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    if kind == "pth":
        torch.save({"model": weights, "iteration": 3}, path)
    else:
        arrays = {name: value.numpy() for name, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "fuzz"}))
    _damage(path, damage)

    def take() -> None:
        model = torch.nn.Linear(2, 3)
        HyperNetCheckpointer(model).load(str(path))
        assert all(p.isfinite().all() for p in model.parameters())

    return take


def prepare_model(kind: str, root: Path, damage: Damaging) -> Callable[[], None]:
    from hypernet_d2.deploy import Detector

    path = root / f"model.{kind}"
    path.write_bytes(_model(kind))
    _damage(path, damage)

    def take() -> None:
        image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
        found = Detector(path, threads=1)(image)
        assert len(found.boxes) == len(found.scores) == len(found.classes)

    return take


@functools.cache
def _model(kind: str) -> bytes:
    """The bytes of an exported model: the shipped one, or a small one."""
    from hypernet_d2.deploy import DIGITS_MODEL
    from tests.deploy import toy

    if kind == "onnx":
        import onnxruntime  # noqa: F401  (what it reads when it is imported is not the case's)

        return DIGITS_MODEL.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        return toy.write_torch(Path(folder, "model.pt2")).read_bytes()


def _damage(path: Path, damage: Damaging) -> None:
    path.write_bytes(damage(path.read_bytes()))


PREPARE = {
    "voc": prepare_voc,
    "coco": prepare_coco,
    "demo": prepare_demo,
    "deploy": prepare_deploy,
    "checkpoint": prepare_checkpoint,
    "model": prepare_model,
}
# The formats of each way; common ones are repeated.
WAYS = {
    "voc": ("xml", "xml", "xml", "xml", "split", "jpeg", "png"),
    "coco": ("json", "json", "json", "json", "json", "jpeg", "png"),
    "demo": ("jpeg", "jpeg", "png", "png", "bmp", "gif", "tiff", "webp"),
    "deploy": ("jpeg", "png", "png", "tiff"),
    "checkpoint": ("pkl", "pth"),
    "model": ("onnx", "pt2"),
}
# The ways of twenty successive cases.
SHARES = [*["voc", "coco"] * 6, *["demo"] * 4, *["deploy", "checkpoint"], "checkpoint", "model"]


def warm_up() -> None:
    """Import what the cases need, once, before processes are forked."""
    import hypernet_d2.data  # noqa: F401
    import hypernet_d2.engine  # noqa: F401

    Image.init()
    _demo()
    for kind in WAYS["model"]:
        _model(kind)
