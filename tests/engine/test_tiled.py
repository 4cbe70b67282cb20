"""Detection in tiles: evaluation and predictor, against a detector that finds all it sees."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import logged_by, tiny_cfg

pytestmark = pytest.mark.detectron2

SIZE = (200, 330)
TILES = ("MODEL.HYPERNET.TILES.SIZE", 96, "MODEL.HYPERNET.TILES.OVERLAP", 32)


def write_scene(root: Path, number: int, most: int = 32) -> tuple[Path, np.ndarray]:
    """A picture of rectangles, sides of 8 to ``most``, each of its own gray value, and its json."""
    rng = np.random.default_rng(0)
    picture = np.zeros(SIZE, np.uint8)
    boxes: list[list[int]] = []
    while len(boxes) < number:
        w, h = rng.integers(8, most + 1, 2)
        x, y = rng.integers(0, SIZE[1] - w), rng.integers(0, SIZE[0] - h)
        if not picture[y : y + h, x : x + w].any():
            boxes.append([int(v) for v in (x, y, w, h)])
            picture[y : y + h, x : x + w] = len(boxes)
    Image.fromarray(picture).save(root / "scene.png")
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3],
         "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "scene.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "rectangle"}],
        "annotations": objects,
    }
    (root / "labels.json").write_text(json.dumps(content))
    return root / "labels.json", picture


class FindsGrayValues(torch.nn.Module):
    """Detects the rectangle of each gray value, with its visible area as the score.

    Keypoints are the upper left and the lower right corner, with a low score at the border of the
    tile, which may cut the rectangle there.
    """

    def __init__(self):
        super().__init__()
        self.batches: list[int] = []

    def forward(self, inputs: list[dict]) -> list[dict]:
        from detectron2.structures import Boxes, Instances

        self.batches.append(len(inputs))
        outputs = []
        for one in inputs:
            assert one["image"].shape[1:] == (one["height"], one["width"])
            height, width = one["height"], one["width"]
            boxes, scores, masks, keypoints = [], [], [], []
            for value in one["image"][0].unique():
                y, x = torch.nonzero(one["image"][0] == value, as_tuple=True)
                if value:
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    scores.append(len(x) / 100_000)
                    masks.append(one["image"][0] == value)
                    x1, y1, x2, y2 = boxes[-1]
                    sure = x1 > 0 and y1 > 0, x2 < width and y2 < height
                    keypoints.append([[x1, y1, 0.1 + sure[0]], [x2, y2, 0.1 + sure[1]]])
            found = Instances((one["height"], one["width"]))
            found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            found.scores = torch.tensor(scores)
            found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
            found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, height, width) > 0
            found.pred_keypoints = torch.tensor(keypoints).reshape(-1, 2, 3)
            outputs.append({"instances": found})
        return outputs


@pytest.fixture
def register_scene(tmp_path, catalog):
    """A function that registers a set of one picture, see `write_scene`, and returns its name."""
    from detectron2.data.datasets import register_coco_instances

    def call(number: int, most: int = 32) -> str:
        file, _ = write_scene(tmp_path, number, most)
        register_coco_instances("scene", {}, str(file), str(tmp_path))
        catalog.append("scene")
        return "scene"

    return call


def evaluate(name: str, model: FindsGrayValues, output, *opts) -> dict:
    """The results of a model in tiles that are not resized, so that gray values stay."""
    from hypernet_d2.engine import Trainer

    cfg = tiny_cfg("DATASETS.TEST", (name,), "INPUT.MIN_SIZE_TEST", 0, *TILES, *opts)
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.OUTPUT_DIR = str(output)
    return Trainer.test(cfg, model.eval())


def test_evaluation_through_tiles_finds_each_object_once(register_scene, tmp_path):
    model = FindsGrayValues()
    results = evaluate(register_scene(40), model, tmp_path)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert model.batches == [4, 4, 4, 3]  # 5 x 3 tiles
    assert not model.training
    found = json.loads((tmp_path / "inference/coco_instances_results.json").read_text())
    assert len(found) == 40


def test_the_detections_of_all_tiles_count(register_scene, tmp_path):
    logging.getLogger("hypernet_d2.evaluation.coco").setLevel(logging.INFO)
    opts = ("TEST.DETECTIONS_PER_IMAGE", 60)
    with logged_by("hypernet_d2.evaluation.coco", logging.INFO) as messages:
        results = evaluate(register_scene(200, most=10), FindsGrayValues(), tmp_path, *opts)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert "count up to 900 detections of a class in an image" in messages[0]  # 60 in 15 tiles


def detect(picture: torch.Tensor, model, *opts):
    from hypernet_d2.engine import TiledDetector

    cfg = tiny_cfg(*TILES, "INPUT.MIN_SIZE_TEST", 0, *opts)
    (output,) = TiledDetector(cfg, model.eval())([{"image": picture}])
    return output["instances"]


def test_masks_and_keypoints_of_parts_are_joined():
    from detectron2.utils.visualizer import Visualizer

    picture = torch.zeros(3, *SIZE, dtype=torch.uint8)
    boxes = [[20, 30, 210, 160], [240, 10, 260, 40], [230, 120, 300, 190]]
    for value, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        picture[:, y1:y2, x1:x2] = value
    picture[:, 100:110, 60:120] = 0  # a hole
    found = detect(picture, FindsGrayValues())
    order = [found.pred_boxes.tensor.tolist().index(box) for box in boxes]
    assert len(found) == len(boxes)
    found = found[order]
    for value, mask in enumerate(found.pred_masks, start=1):
        assert torch.equal(mask, picture[0] == value)
    assert found.pred_keypoints[:, :, :2].flatten(1).tolist() == boxes
    assert torch.equal(found[1:].pred_masks[0], picture[0] == 2)
    drawn = Visualizer(np.zeros((*SIZE, 3), np.uint8)).draw_instance_predictions(found).get_image()
    assert drawn[35, 30].any() and not drawn[5, 5].any()


class FindsSmallGrayValues(FindsGrayValues):
    """Finds only what fills less than half of its input."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        for one in outputs:
            found = one["instances"]
            half = found.image_size[0] * found.image_size[1] / 2
            one["instances"] = found[found.pred_boxes.area() < half]
        return outputs


def test_the_whole_image_shows_objects_that_are_too_large_for_a_tile():
    picture = torch.zeros(3, *SIZE, dtype=torch.uint8)
    large, small = [10, 10, 180, 190], [300, 20, 320, 40]
    picture[:, 10:190, 10:180] = 1
    picture[:, 20:40, 300:320] = 2
    tiles_alone = detect(picture, FindsSmallGrayValues()).pred_boxes.tensor.tolist()
    assert large not in tiles_alone and tiles_alone.count(small) == 1
    whole = ("MODEL.HYPERNET.TILES.WHOLE_IMAGE", True)
    found = detect(picture, FindsSmallGrayValues(), *whole).pred_boxes.tensor.tolist()
    assert sorted(found) == [large, small]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A tiny model with random weights."""
    from detectron2.modeling import build_model

    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.manual_seed(0)
    torch.save({"model": build_model(tiny_cfg()).state_dict()}, path)
    return str(path)


def predictor(weights: str, *opts):
    from hypernet_d2.engine import Predictor

    cfg = tiny_cfg("MODEL.WEIGHTS", weights, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts)
    return Predictor(cfg)


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
def test_an_image_of_one_tile_has_exactly_the_plain_detections(weights, input_format):
    image = np.random.default_rng(0).integers(0, 255, (70, 96, 3), dtype=np.uint8)
    plain = predictor(weights, "INPUT.FORMAT", input_format)(image)["instances"]
    tiled = predictor(weights, "INPUT.FORMAT", input_format, *TILES)(image)["instances"]
    assert len(plain) and plain.image_size == tiled.image_size
    assert torch.equal(plain.pred_boxes.tensor, tiled.pred_boxes.tensor)
    assert torch.equal(plain.scores, tiled.scores)
    assert torch.equal(plain.pred_classes, tiled.pred_classes)


def test_the_tiles_of_an_image_are_detected_in_as_images_of_their_own(weights):
    from hypernet_d2.utils.tiles import merge_detections, tile_boxes

    image = np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)
    tiles = tile_boxes((96, 160), 96, 32)
    plain = predictor(weights)
    found = []
    for x1, y1, x2, y2 in tiles:
        part = plain(image[y1:y2, x1:x2])["instances"]
        values = part.pred_boxes.tensor, part.scores, part.pred_classes
        found.append([value.numpy() for value in values])
    boxes, scores, classes = merge_detections(found, tiles, (96, 160))
    tiled = predictor(weights, *TILES)(image)["instances"]
    assert len(tiled) and tiled.image_size == (96, 160)
    # Batches of tiles round differently.
    np.testing.assert_allclose(tiled.scores, scores, atol=1e-5)
    np.testing.assert_allclose(tiled.pred_boxes.tensor, boxes, atol=1e-2)
    assert tiled.pred_classes.tolist() == classes.tolist()


def test_a_line_of_1500_pixels(weights):
    line = np.random.default_rng(0).integers(0, 255, (1, 1500, 3), dtype=np.uint8)
    found = predictor(weights, *TILES)(line)["instances"]
    assert found.image_size == (1, 1500)
    assert torch.isfinite(found.pred_boxes.tensor).all()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "HypercolumnPartHead"],
            r"does not support MODEL.ROI_MASK_HEAD.NAME 'HypercolumnPartHead'; expected .*SIZE 0",
        ),
        (["MODEL.LOAD_PROPOSALS", True], "does not support MODEL.LOAD_PROPOSALS True"),
        (["TEST.AUG.ENABLED", True], "does not support TEST.AUG.ENABLED True"),
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "META_ARCHITECTURE 'ProposalNetwork'"),
        (["MODEL.HYPERNET.TILES.OVERLAP", 96], "SIZE 96 and OVERLAP 96: .*expected 0 to 95"),
        (["MODEL.HYPERNET.TILES.SIZE", -1], "SIZE -1 .*the tile's side is -1 pixels"),
    ],
)
def test_what_tiles_do_not_support_is_refused_at_the_start(opts, message):
    from hypernet_d2.engine import TiledDetector, Trainer

    cfg = tiny_cfg(*TILES, *opts)
    with pytest.raises(ValueError, match=message):
        Trainer(cfg)
    with pytest.raises(ValueError, match=message):
        TiledDetector(cfg, torch.nn.Identity())
    with pytest.raises(ValueError, match=message):
        Trainer.test_proposals(cfg, None)
