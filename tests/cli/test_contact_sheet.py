"""demo/contact_sheet.py, on a tiny model with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Arguments that name a tiny model and its data, six images of 64 x 80 pixels."""
    from detectron2.modeling import build_model

    folder = tmp_path_factory.mktemp("sheet")
    write_voc(folder / "voc")
    (folder / "data.py").write_text(
        "from hypernet_d2.data import register_voc_style\n"
        f"register_voc_style('sheet_val', {str(folder / 'voc')!r}, 'all', ['square', 'bar'])\n"
    )
    cfg = tiny_cfg("DATASETS.TEST", ("sheet_val",), "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    (folder / "metrics.json").write_text('{"bbox/AP": 12.3}\n{"total_loss": 1.0}\n')
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return ["--config-file", str(folder / "config.yaml"), "--data", str(folder / "data.py")]


def test_a_sheet_of_ground_truth_and_detections(words, tmp_path, monkeypatch):
    from hypernet_d2.cli import contact_sheet

    drawn = {}
    make_sheet = contact_sheet.make_sheet

    def keep(pictures, titles, **kwargs):
        drawn.update(pictures=pictures, titles=titles, **kwargs)
        return make_sheet(pictures, titles, **kwargs)

    monkeypatch.setattr(contact_sheet, "make_sheet", keep)
    output = tmp_path / "out" / "sheet.png"
    contact_sheet.main([*words, "--output", str(output), "--num-images", "3", "--score", "0"])
    assert Image.open(output).width > 4 * contact_sheet.CELL_WIDTH
    assert drawn["titles"][::2] == [f"{i:03}.jpg: ground truth, 2" for i in (0, 2, 5)]
    assert all(title.startswith("detections, ") for title in drawn["titles"][1::2])
    assert "sheet_val, AP 12.3" in drawn["heading"]
    truth, found = drawn["pictures"][:2]
    assert truth.shape == found.shape == (384, 480, 3) and np.any(truth != found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-images", "0"], "expected 1 or more"),
        (["--score", "1.5"], "from 0 to 1"),
        (["--output", "sheet.gif"], "ends in .png or .jpg"),
    ],
)
def test_wrong_arguments_are_named(words, arguments, message, capsys):
    from hypernet_d2.cli import contact_sheet

    with pytest.raises(SystemExit):
        contact_sheet.main([*words, "--output", "sheet.png", *arguments])
    assert message in capsys.readouterr().err
