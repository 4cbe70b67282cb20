"""Configs and models of the zoo in programs that know detectron2 only, such as SAHI."""

import numpy as np
import pytest
import torch

from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2

CONFIGS = ["Digits-Detection/hypernet_tiny.yaml", "BCCD-Detection/hypernet_SP_R_18.yaml"]


def merged_without_our_defaults(file: str):
    """What a program does that was not written for this project."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(file)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_merged_into_detectron2s_defaults_builds_the_same_model(name):
    from detectron2.modeling import build_model

    from hypernet_d2 import model_zoo

    ours = model_zoo.get_config(name)
    ours.MODEL.DEVICE = "cpu"
    theirs = merged_without_our_defaults(model_zoo.get_config_file(name))
    shapes = [
        {key: value.shape for key, value in build_model(cfg).state_dict().items()}
        for cfg in (ours, theirs)
    ]
    assert shapes[0] == shapes[1]


def test_defaults_complete_a_node_and_an_unknown_key_is_refused():
    from hypernet_d2.config import hypernet_node

    cfg = tiny_cfg()
    assert hypernet_node(cfg) == cfg.MODEL.HYPERNET
    cfg.set_new_allowed(True)
    del cfg.MODEL.HYPERNET["HYPERCOLUMN"]
    assert hypernet_node(cfg).HYPERCOLUMN == tiny_cfg().MODEL.HYPERNET.HYPERCOLUMN
    assert hypernet_node(cfg).FEATURE.CHANNELS == 6
    cfg.MODEL.HYPERNET.TRUNKS = "?"
    with pytest.raises(KeyError, match="TRUNKS"):
        hypernet_node(cfg)


@pytest.mark.sahi
def test_sahi_detects_in_slices(tmp_path):
    import sahi
    from detectron2.modeling import build_model
    from sahi.predict import get_sliced_prediction

    from hypernet_d2 import model_zoo

    file = model_zoo.get_config_file(CONFIGS[0])
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(merged_without_our_defaults(file)).state_dict()}, weights)
    model = sahi.AutoDetectionModel.from_pretrained(
        "detectron2",
        model_path=str(weights),
        config_path=file,
        confidence_threshold=0.01,
        device="cpu",
    )
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    result = get_sliced_prediction(image, model, slice_height=128, slice_width=128, verbose=0)
    boxes = np.array([found.bbox.to_xyxy() for found in result.object_prediction_list])
    assert len(boxes) and (boxes >= 0).all() and (boxes <= [300, 200, 300, 200]).all()
    assert {found.category.name for found in result.object_prediction_list} <= set("0123456789")
