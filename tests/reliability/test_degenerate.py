"""Odd images and objects, through whole models: finite losses, and detections within the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers import tiny_cfg, write_voc

SIZES = [(1, 1), (1, 5000), (5000, 1)]
CONTENTS = {
    "black": lambda h, w: np.zeros((h, w, 3), np.uint8),
    "white": lambda h, w: np.full((h, w, 3), 255, np.uint8),
    "noise": lambda h, w: np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8),
}
HEADS = {
    "HyperNet": [],
    "HyperNet-SP": [
        "MODEL.HYPERNET.PROPOSALS.CONV_BEFORE_POOLING", True,
        "MODEL.HYPERNET.BOX_HEAD.CONV_BEFORE_POOLING", True,
    ],
    "RoIAlign": ["MODEL.HYPERNET.PROPOSALS.POOLER_TYPE", "ROIAlignV2"],
}  # fmt: skip


@pytest.fixture(scope="module")
def models():
    """A function that builds a model of `HEADS` once."""
    from detectron2.modeling import build_model

    built = {}

    def get(name: str):
        if name not in built:
            torch.manual_seed(0)
            built[name] = build_model(tiny_cfg("TEST.DETECTIONS_PER_IMAGE", 5, *HEADS[name]))
        return built[name]

    return get


def with_objects(image: np.ndarray, boxes: list, masks: bool = False) -> dict:
    """What a mapper gives of an image and its objects, with masks and keypoints if need be."""
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    h, w = image.shape[:2]
    instances = Instances((h, w))
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.arange(len(boxes)) % 3
    if masks:
        instances.gt_masks = BitMasks(torch.ones(len(boxes), h, w, dtype=torch.bool))
        middle = (boxes[:, None, :2] + boxes[:, None, 2:]).repeat(1, 5, 1) / 2
        seen = torch.full((len(boxes), 5, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat([middle, seen], dim=2))
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return {"image": tensor, "instances": instances, "height": h, "width": w, "file_name": "x.jpg"}


def train(model, inputs: list[dict]) -> dict[str, torch.Tensor]:
    """The losses; they and all gradients have to be finite."""
    from detectron2.utils.events import EventStorage

    model.train().zero_grad()
    with EventStorage():
        losses = model(inputs)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    return losses


def detect(model, one: dict):
    """The detections, which have to be finite and within the image."""
    with torch.no_grad():
        found = model.eval()([{k: v for k, v in one.items() if k != "instances"}])[0]["instances"]
    h, w = one["height"], one["width"]
    boxes = found.pred_boxes.tensor
    assert torch.isfinite(boxes).all() and torch.isfinite(found.scores).all()
    assert ((boxes >= 0) & (boxes <= torch.tensor([w, h, w, h]))).all()
    return found


@pytest.mark.detectron2
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", SIZES)
def test_images_of_a_pixel_in_height_or_width(models, head, size):
    h, w = size
    one = with_objects(CONTENTS["noise"](h, w), [[0, 0, w, h]])
    # BatchNorm has no statistics of a map of one value alone.
    train(models(head), [one, one] if size == (1, 1) else [one])
    detect(models(head), one)


@pytest.mark.detectron2
@pytest.mark.parametrize("content", CONTENTS)
def test_images_that_show_nothing(models, content):
    one = with_objects(CONTENTS[content](64, 80), [[4, 4, 30, 40]])
    train(models("HyperNet"), [one, one])
    detect(models("HyperNet"), one)


DEGENERATE = {
    "no area": [[10, 10, 10, 30], [20, 20, 20, 20]],
    "a thousandth of a pixel": [[10, 10, 10.001, 10.001]],
    "a pixel": [[79, 63, 80, 64], [0, 0, 1, 1]],
    "the whole image": [[0, 0, 80, 64]],
    "a line": [[0, 30, 80, 31], [40, 0, 41, 64]],
    "one place": [[8, 8, 40, 40]] * 20,
}


@pytest.mark.detectron2
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("boxes", DEGENERATE)
def test_degenerate_objects(models, head, boxes):
    train(models(head), [with_objects(CONTENTS["noise"](64, 80), DEGENERATE[boxes])])


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_hypercolumn_heads_take_them_too(kind):
    from detectron2.modeling import build_model

    folder = {"mask": "InstanceSegmentation", "keypoint": "Keypoints"}[kind]
    small = [f"MODEL.HYPERNET.HYPERCOLUMN.{key}" for key in ("FC_DIM", "CONV_DIM", "HEATMAP_SIZE")]
    options = [word for pair in zip(small, (8, 4, 10), strict=True) for word in pair]
    model = build_model(tiny_cfg(*options, config=f"Digits-{folder}/hypercolumn_R_18.yaml"))
    for boxes in [*DEGENERATE.values(), []]:
        one = with_objects(CONTENTS["noise"](64, 80), boxes, masks=True)
        train(model, [one])
    for size in ((1, 1), (1, 300), (300, 1)):
        one = with_objects(CONTENTS["black"](*size), [[0, 0, size[1], size[0]]], masks=True)
        # BatchNorm has no statistics of a map of one value alone.
        train(model, [one, one])
        found = detect(model, one)
        values = found.pred_masks if kind == "mask" else found.pred_keypoints
        assert len(values) == len(found) and torch.isfinite(values.float()).all()


@pytest.mark.detectron2
def test_a_thousand_objects_in_one_image(models):
    corner = np.random.default_rng(0).uniform(0, [70, 54], (1000, 2))
    boxes = np.concatenate([corner, corner + np.random.default_rng(1).uniform(1, 10, (1000, 2))], 1)
    losses = train(models("HyperNet"), [with_objects(CONTENTS["noise"](64, 80), boxes.tolist())])
    assert losses["loss_box_reg"] > 0


@pytest.mark.detectron2
def test_no_object_in_a_whole_epoch(tmp_path):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data import register_voc_style
    from hypernet_d2.engine import Trainer

    write_voc(tmp_path / "data", count=3)
    for file in (tmp_path / "data/Annotations").iterdir():
        text = file.read_text()
        file.write_text(text[: text.index("<object>")] + "</annotation>")
    register_voc_style("empty", tmp_path / "data", "all", ["square", "bar"])
    options = [
        "DATASETS.TRAIN", ("empty",), "DATASETS.TEST", (), "MODEL.ROI_HEADS.NUM_CLASSES", 2,
        "SOLVER.MAX_ITER", 3, "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.WEIGHTS", "",
    ]  # fmt: skip
    try:
        with pytest.raises(ValueError, match="no image of empty has an object.*FILTER_EMPTY"):
            Trainer(tiny_cfg(*options))
        Trainer(tiny_cfg(*options, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)).train()
    finally:
        DatasetCatalog.pop("empty")
        MetadataCatalog.pop("empty")
    state = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("size", [*SIZES, (2, 3)])
@pytest.mark.parametrize("content", CONTENTS)
def test_the_deployed_detector_takes_them(size, content):
    pytest.importorskip("onnxruntime")
    found = deployed()(CONTENTS[content](*size), score_threshold=None)
    h, w = size
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert ((found.boxes >= 0) & (found.boxes <= [w, h, w, h])).all()


def deployed(cache=[]):  # noqa: B006
    from hypernet_d2.deploy import DIGITS_MODEL, Detector

    if not cache:
        cache.append(Detector(DIGITS_MODEL, threads=1))
    return cache[0]


def test_the_deployed_detector_names_numbers_that_are_not_finite(monkeypatch):
    pytest.importorskip("onnxruntime")
    detector = deployed()
    run = detector._run

    def broken(*args):
        outputs = run(*args)
        outputs[1] = outputs[1] * np.nan
        return outputs

    monkeypatch.setattr(detector, "_run", broken)
    with pytest.raises(FloatingPointError, match=r"digits\.onnx: .* not finite"):
        detector(CONTENTS["noise"](64, 80))


@pytest.mark.detectron2
def test_the_predictor_names_features_that_are_not_finite(tmp_path, models):
    from hypernet_d2.engine import Predictor

    model = models("HyperNet")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    predictor = Predictor(tiny_cfg("MODEL.WEIGHTS", str(tmp_path / "model.pth")))
    image = CONTENTS["noise"](64, 80)
    assert predictor(image)["instances"].image_size == (64, 80)
    predictor.model.backbone.trunk.stem.conv1.weight.data *= 1e38
    with pytest.raises(FloatingPointError, match="output of HyperBackbone is not finite"):
        predictor(image)
