"""Precomputed proposals: what detectron2 reads, without running what a pickle names."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

pytestmark = pytest.mark.detectron2


class MakesFolder:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def content() -> dict:
    boxes, logits = np.array([[0, 0, 5, 5], [1, 1, 9, 9]], "float32"), np.array([1, 2], "float32")
    return {"ids": [7], "boxes": [boxes], "objectness_logits": [logits], "bbox_mode": 0}


def write(path, content) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


@pytest.mark.parametrize("old_names", [False, True])
def test_proposals_are_those_of_the_stock_function(tmp_path, content, old_names):
    from detectron2.data import load_proposals_into_dataset

    from hypernet_d2.data.proposals import add_proposals

    if old_names:
        content = {
            "indexes": content["ids"],
            "scores": content["objectness_logits"],
            "boxes": content["boxes"],
        }
    path = write(tmp_path / "proposals.pkl", content)
    (ours,) = add_proposals([{"image_id": "7", "file_name": "a.jpg"}], path)
    (stock,) = load_proposals_into_dataset([{"image_id": "7", "file_name": "a.jpg"}], path)
    assert ours.keys() == stock.keys()
    for key, value in stock.items():
        assert np.array_equal(ours[key], value), key
    assert ours["proposal_objectness_logits"].tolist() == [2, 1]


def test_a_file_that_could_run_code_is_refused(tmp_path, content):
    from hypernet_d2.data.proposals import add_proposals

    path = write(tmp_path / "bad.pkl", {**content, "extra": MakesFolder(tmp_path / "made")})
    with pytest.raises(ValueError, match=r"bad\.pkl: cannot be read: it names .*mkdir"):
        add_proposals([{"image_id": 7, "file_name": "a.jpg"}], path)
    assert not (tmp_path / "made").exists()


def test_an_image_without_proposals_is_named(tmp_path, content):
    from hypernet_d2.data.proposals import add_proposals

    path = write(tmp_path / "other.pkl", content)
    with pytest.raises(ValueError, match=r"other\.pkl: no proposals for image 8, b\.jpg"):
        add_proposals([{"image_id": 8, "file_name": "b.jpg"}], path)
