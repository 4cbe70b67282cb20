"""What the tests of several data sets share."""

import pytest


@pytest.fixture
def perfect_outputs():
    """A function from a dataset dict to the output of a model that finds exactly its objects."""
    import numpy as np
    import torch
    from detectron2.structures import Boxes, BoxMode, Instances
    from pycocotools import mask as coco_mask

    def make(record: dict) -> dict:
        annotations = record["annotations"]
        found = Instances((record["height"], record["width"]))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        found.scores = torch.ones(len(annotations))
        found.pred_classes = torch.tensor([a["category_id"] for a in annotations]).long()
        if annotations and "segmentation" in annotations[0]:
            masks = np.stack([coco_mask.decode(a["segmentation"]) for a in annotations])
            found.pred_masks = torch.from_numpy(masks).bool()
            keypoints = torch.tensor([a["keypoints"] for a in annotations])
            found.pred_keypoints = keypoints.reshape(len(annotations), -1, 3)
        return {"instances": found}

    return make
