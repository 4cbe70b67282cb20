"""AP^r_part and mean IoU of parts, on detections whose values are known."""

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2

H, W, SIDE = 40, 60, 12
CORNERS = {1: [(5, 4), (30, 20)], 2: [(10, 10)]}  # of each image's objects, x and y


def labels_of(corner: tuple[int, int]) -> np.ndarray:
    """(H, W): a square of SIDE pixels, its upper third part 0, the rest part 1."""
    x, y = corner
    labels = np.zeros((H, W), np.uint8)
    labels[y : y + SIDE, x : x + SIDE] = 2
    labels[y : y + SIDE // 3, x : x + SIDE] = 1
    return labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """The name of a registered set; its third object, and a crowd, are of class 1."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode
    from pycocotools import mask as coco_mask

    def annotation(corner, category, **fields):
        labels = labels_of(corner)
        masks = [np.asfortranarray(labels == part + 1).astype(np.uint8) for part in range(2)]
        return {
            "bbox": [*corner, SIDE, SIDE],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": category,
            "parts": [coco_mask.encode(mask) for mask in masks],
            **fields,
        }

    folder = tmp_path_factory.mktemp("images")
    for image_id in CORNERS:
        (folder / f"{image_id}.png").touch()  # looked for, but not read
    records = [
        {
            "image_id": image_id,
            "file_name": str(folder / f"{image_id}.png"),
            "height": H,
            "width": W,
            "annotations": [annotation(corner, image_id - 1) for corner in corners],
        }
        for image_id, corners in CORNERS.items()
    ]
    crowd = {"iscrowd": 1, "bbox": [0, 0, 60, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    records[1]["annotations"].append(crowd)
    name = "test_part_evaluation"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["a", "b"], part_names=["head", "body"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def detections(corners, classes=None, rows: int = SIDE // 3, scores=None):
    """Squares whose upper ``rows`` rows are part 0 and the others part 1."""
    from detectron2.structures import Boxes, Instances

    n = len(corners)
    found = Instances((H, W))
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(n, 2)
    found.pred_boxes = Boxes(torch.cat([boxes, boxes + SIDE], 1))
    found.scores = torch.tensor(scores or [0.9] * n)
    found.pred_classes = torch.tensor(classes or [0] * n)
    masks = torch.zeros(n, 2, SIDE, SIDE)
    masks[:, 0, :rows], masks[:, 1, rows:] = 0.9, 0.9
    found.pred_part_masks = masks
    return found


def evaluate(dataset: str, found: dict) -> dict[str, float]:
    from hypernet_d2.evaluation import PartEvaluator

    evaluator = PartEvaluator(dataset, distributed=False)
    for image_id, instances in found.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["parts"]


def perfect(**kwargs) -> dict:
    return {i: detections(c, [i - 1] * len(c), **kwargs) for i, c in CORNERS.items()}


def test_perfect_detections_have_a_hundred(dataset):
    results = evaluate(dataset, perfect())
    assert results == pytest.approx(
        dict.fromkeys(("AP", "AP50", "AP75", "mIoU", "IoU-head", "IoU-body"), 100)
    )


def test_labels_that_agree_in_part_count_by_how_much(dataset):
    # Of 12 rows 4 are head; with 7, three rows are wrong: 9 / 12 agree.
    results = evaluate(dataset, perfect(rows=7))
    assert results["AP50"] == pytest.approx(100)
    assert results["AP"] == pytest.approx(60)  # thresholds 0.5, 0.55, ..., 0.75
    assert results["IoU-head"] == pytest.approx(100 * 4 / 7)
    assert results["IoU-body"] == pytest.approx(100 * 5 / 8)
    assert results["mIoU"] == pytest.approx(50 * (4 / 7 + 5 / 8))


def test_a_wrong_class_costs_ap_but_no_iou(dataset):
    found = perfect()
    found[1].pred_classes[:] = 1
    results = evaluate(dataset, found)
    assert results["AP50"] < 51 and results["mIoU"] == pytest.approx(100)


def test_an_object_that_is_not_found_has_no_labels(dataset):
    found = perfect()
    found[2] = detections([])
    results = evaluate(dataset, found)
    assert results["mIoU"] == pytest.approx(200 / 3)
    assert results["AP50"] == pytest.approx(50)


def test_the_best_detection_that_overlaps_the_box_labels_an_object(dataset):
    # The first has the highest score but lies elsewhere; the last has the worst score.
    found = perfect()
    found[2] = detections([(40, 25), (10, 10), (10, 10)], [1] * 3, scores=[0.9, 0.8, 0.3])
    found[2].pred_part_masks[2] = 0
    assert evaluate(dataset, found)["mIoU"] == pytest.approx(100)
    found[2].scores = torch.tensor([0.9, 0.3, 0.8])
    assert evaluate(dataset, found)["mIoU"] == pytest.approx(200 / 3)


def test_without_a_detection_there_is_no_ap(dataset):
    results = evaluate(dataset, {1: detections([]), 2: detections([])})
    assert np.isnan(results["AP"]) and results["mIoU"] == 0


def test_overlap_is_of_pixels_with_the_same_part():
    from hypernet_d2.evaluation.part_evaluation import part_overlaps

    truth = torch.tensor([[[1, 1, 2, 0]], [[0, 0, 0, 0]]])
    labels = torch.tensor([[[1, 2, 2, 0]], [[0, 0, 2, 2]], [[0, 0, 0, 0]]])
    expected = torch.tensor([[2 / 3, 0], [1 / 4, 0], [0, 0]])
    assert torch.allclose(part_overlaps(labels, truth), expected)


def test_a_picture_colours_the_parts():
    from detectron2.data import MetadataCatalog
    from detectron2.utils.visualizer import Visualizer

    from hypernet_d2.engine import draw_parts

    image = np.full((H, W, 3), 128, np.uint8)
    visualizer = Visualizer(image, MetadataCatalog.get("digits_val"))
    behind = torch.full((H, W), 3, dtype=torch.uint8)
    labels = torch.stack([torch.from_numpy(labels_of((5, 4))), behind])
    picture = draw_parts(visualizer, labels).get_image()
    colours = [tuple(picture[y, x]) for y, x in ((5, 10), (12, 10), (30, 50))]
    assert len(set(colours)) == 3 and (128, 128, 128) not in colours
