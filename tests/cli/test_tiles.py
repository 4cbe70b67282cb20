"""hypernet-d2 tiles: the written tiles are those that are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.detectron2

SIZE = "--size 64 --overlap 16".split()


def run(*arguments):
    from hypernet_d2.cli.tiles import main

    main([*SIZE, *map(str, arguments)])


@pytest.fixture
def two_folders(tmp_path) -> Path:
    """Data whose two images, in two folders, have one name; each has a mask and a keypoint."""
    root = tmp_path / "data"
    images, objects = [], []
    for number, folder in enumerate("ab", start=1):
        (root / folder).mkdir(parents=True)
        pixels = np.full((64, 112, 3), 50 * number, np.uint8)
        pixels[10:30, 52:72] = 250  # in both tiles: from 0 to 64 and from 48 to 112
        Image.fromarray(pixels).save(root / folder / "x.png")
        images.append({"id": number, "file_name": f"{folder}/x.png", "height": 64, "width": 112})
        objects.append({
            "id": number, "image_id": number, "category_id": 1, "bbox": [52, 10, 20, 20],
            "area": 400, "iscrowd": 0, "segmentation": [[52, 10, 72, 10, 72, 30, 52, 30]],
            "keypoints": [53, 11, 2, 71, 29, 2], "num_keypoints": 2,
        })  # fmt: skip
    content = {
        "images": images, "annotations": objects,
        "categories": [{"id": 1, "name": "square", "keypoints": ["first", "last"]}],
    }  # fmt: skip
    (root / "labels.json").write_text(json.dumps(content))
    return root / "labels.json"


def test_tiles_are_written_with_what_they_show(two_folders, tmp_path, catalog):
    pytest.importorskip("shapely", reason="detectron2 cuts polygons with shapely")
    from detectron2.data.datasets import register_coco_instances

    names = {"keypoint_names": ["first", "last"]}
    register_coco_instances("two", names, str(two_folders), str(two_folders.parent))
    catalog.append("two")
    out = tmp_path / "tiles"
    run("--dataset", "two", "--output", out, "--min-visible", "0.5")
    content = json.loads((out / "tiles.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    assert [image["file_name"] for image in images.values()] == [
        "images/x_0001.png", "images/x_0002.png", "images/x_2_0001.png", "images/x_2_0002.png"
    ]  # fmt: skip
    assert [image["tile"] for image in images.values()] == [[0, 0, 64, 64], [48, 0, 112, 64]] * 2
    assert len(content["annotations"]) == 4
    for one in content["annotations"]:
        image = images[one["image_id"]]
        pixels = np.asarray(Image.open(out / image["file_name"]))
        x, y, w, h = (int(value) for value in one["bbox"])
        assert (pixels[y : y + h, x : x + w] == 250).all()
        assert (pixels == 250).all(axis=2).sum() == w * h == one["area"]
        polygon = np.array(one["segmentation"][0]).reshape(-1, 2)
        assert polygon.min(axis=0).tolist() == [x, y]
        assert polygon.max(axis=0).tolist() == [x + w, y + h]
        assert one["num_keypoints"] == (1 if x == 52 else 2)


def test_the_folder_and_the_shares_are_checked(two_folders, tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, message in [
        (("--output", tmp_path), "exists; expected a new or empty folder"),
        (("--output", tmp_path / "out", "--min-visible", 0), "--min-visible 0.0: expected more"),
        (("--output", tmp_path / "out", "--empty-share", 1), "--empty-share 1.0: expected 0 or"),
    ]:
        with pytest.raises(SystemExit):
            run("--data", two_folders, *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="tiles of 64 pixels overlap by 64; expected 0 to 63"):
        run("--dataset", "digits_val", "--output", tmp_path / "out", "--overlap", 64)
    assert not (tmp_path / "out").exists()
