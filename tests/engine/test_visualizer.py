"""Drawing of boxes and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2


def test_labels_lie_within_the_picture():
    from hypernet_d2.engine.visualizer import BoxVisualizer

    h, w = 90, 120
    corners = [[0, 0, 10, 10], [110, 0, 120, 10], [0, 80, 10, 90], [110, 80, 120, 90], [0, 0, w, h]]
    visualizer = BoxVisualizer(np.zeros((h, w, 3), np.uint8), scale=2.0)
    visualizer.overlay_instances(
        boxes=np.array(corners, float),
        labels=["a long label"] * len(corners),
        assigned_colors=[(1, 0, 0)] * len(corners),
    )
    visualizer.output.get_image()
    assert len(visualizer.output.ax.texts) == len(corners)
    for label in visualizer.output.ax.texts:
        extent = label.get_bbox_patch().get_window_extent()
        assert extent.x0 >= 0 and extent.y0 >= 0
        assert extent.x1 <= 2 * w + 1 and extent.y1 <= 2 * h + 1


@pytest.mark.parametrize("names", [["a", "b", "c"], None])
def test_detections_and_ground_truth_of_a_class_have_one_color(names):
    from detectron2.data import Metadata
    from detectron2.structures import Boxes, BoxMode, Instances

    from hypernet_d2.engine.visualizer import BoxVisualizer

    metadata = Metadata(thing_classes=names) if names else None
    image, box = np.zeros((60, 80, 3), np.uint8), [20.0, 30.0, 60.0, 50.0]

    def drawn(label: int) -> tuple:
        """Colors of the box's lower edge, of a detection and of an annotation; the two texts."""
        found = Instances((60, 80), pred_boxes=Boxes(torch.tensor([box])))
        found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([label])
        annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label}
        one, other = BoxVisualizer(image, metadata), BoxVisualizer(image, metadata)
        one.draw_instance_predictions(found)
        other.draw_dataset_dict({"annotations": [annotation]})
        texts = [v.output.ax.texts[0].get_text() for v in (one, other)]
        return *(tuple(v.output.get_image()[50, 40]) for v in (one, other)), texts

    first, second = drawn(1), drawn(2)
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]
    name = "b" if names else "1"
    assert first[2] == [f"{name} 50%", name]
