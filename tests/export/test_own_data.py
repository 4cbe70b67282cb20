"""From a data set of one's own to detections in three commands: train, export, detect."""

import json
import logging
from pathlib import Path

import pytest
import torch

from tests.export.test_export import FEW
from tests.helpers import TINY, captures, write_voc

pytestmark = [pytest.mark.detectron2, captures]

REGISTER = {
    "voc": """
for name in ("mine_train", "mine_val"):
    hypernet_d2.data.register_voc_style(name, root, "all", ["square", "bar"])
""",
    "coco": """
for name in ("mine_train", "mine_val"):
    register_coco_instances(name, {}, root + "/mine.json", root + "/JPEGImages")
""",
    "dicts": """
def load():
    return [
        {
            "file_name": f"{root}/JPEGImages/{image['file_name']}", "image_id": image["id"],
            "height": image["height"], "width": image["width"],
            "annotations": [
                {"bbox": a["bbox"], "bbox_mode": 1, "category_id": a["category_id"] - 1}
                for a in content["annotations"] if a["image_id"] == image["id"]
            ],
        }
        for image in content["images"]
    ]


content = json.load(open(root + "/mine.json"))
for name in ("mine_train", "mine_val"):
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).thing_classes = ["square", "bar"]
""",
}  # fmt: skip


def write_data(folder: Path, kind: str) -> Path:
    """A tiny set under ``folder``, and the Python file for --data that registers it."""
    write_voc(folder, count=2)
    images = [{"id": i, "file_name": f"00{i}.jpg", "height": 64, "width": 80} for i in (0, 1)]
    annotations = [
        {"id": 1 + 2 * i + c, "image_id": i, "category_id": 1 + c, "bbox": [9 + 20 * c, 8, 16, 12],
         "area": 192, "iscrowd": 0}
        for i in (0, 1) for c in (0, 1)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "mine.json").write_text(json.dumps(content))
    file = folder / "mine.py"
    file.write_text(
        "import json\n\nimport hypernet_d2\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "from detectron2.data.datasets import register_coco_instances\n\n"
        f"root = {str(folder)!r}\n{REGISTER[kind]}"
    )
    return file


@pytest.fixture
def unregister():
    """A function that makes this process forget the data sets, as a new command would."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    def remove():
        for name in ("mine_train", "mine_val"):
            for catalog in (DatasetCatalog, MetadataCatalog):
                if name in catalog.list():
                    catalog.remove(name)

    loggers = [logging.getLogger(name) for name in ("detectron2", "hypernet_d2", "fvcore")]
    handlers = [list(logger.handlers) for logger in loggers]
    yield remove
    remove()
    for logger, before in zip(loggers, handlers, strict=True):
        logger.handlers[:] = before


@pytest.mark.parametrize(
    ("kind", "names_in_checkpoint"),
    [
        ("voc", True),
        pytest.param("coco", True, marks=pytest.mark.slow),
        pytest.param("dicts", False, marks=pytest.mark.slow),
    ],
)
def test_from_own_data_to_detections(kind, names_in_checkpoint, tmp_path, capsys, unregister):
    from hypernet_d2.cli import export, train
    from hypernet_d2.deploy import Detector
    from hypernet_d2.deploy.__main__ import main as detect

    data, output = write_data(tmp_path, kind), tmp_path / "output"
    words = ["DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_val',)"]
    words += ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    words += ["OUTPUT_DIR", output, *TINY, *FEW, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    train.main(["--config", "BCCD-Detection/hypernet_R_18", "--data", str(data), *map(str, words)])
    unregister()
    weights = output / "model_final.pth"
    arguments = ["--config-file", output / "config.yaml", "--format", "torch_export"]
    arguments += ["--output", output / "exported"]
    if not names_in_checkpoint:  # as in checkpoints of detectron2
        torch.save({"model": torch.load(weights)["model"]}, weights)
        with pytest.raises(ValueError, match="no class names.*'mine_val'.*--data PATH registers"):
            export.main([*map(str, arguments), "MODEL.WEIGHTS", str(weights)])
        arguments += ["--data", data]
    assert export.main([*map(str, arguments), "MODEL.WEIGHTS", str(weights)]) == 0
    (file,) = (output / "exported").iterdir()
    assert Detector(file).info.classes == ("square", "bar")
    capsys.readouterr()
    assert detect([str(file), str(tmp_path / "JPEGImages/000.jpg"), "--threshold", "0"]) == 0
    found = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {"square", "bar"} & set(found)
