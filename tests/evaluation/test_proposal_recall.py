"""Recall of proposals: against detectron2's own figures, by hand, and of whole models."""

import argparse
import json
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import TINY, batched_inputs, tiny_cfg, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
HYPERNET = "BCCD-Detection/hypernet_R_18.yaml"
FPN = "BCCD-Detection/faster_rcnn_R_18_FPN.yaml"
C4 = "BCCD-Detection/faster_rcnn_R_18_C4.yaml"


@pytest.fixture
def register(tmp_path):
    """A function that registers {image id: list of (box, is it a crowd)}, as detectron2 has it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    def call(images: dict, name: str = "recall") -> str:
        dicts = [
            {
                "file_name": str(tmp_path / f"{image_id}.jpg"),
                "image_id": image_id,
                "height": 400,
                "width": 400,
                "annotations": [
                    {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": crowd}
                    for box, crowd in objects
                ],
            }
            for image_id, objects in images.items()
        ]
        for record in dicts:
            Path(record["file_name"]).touch()
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).thing_classes = ["thing"]
        return name

    yield call
    DatasetCatalog.remove("recall")
    MetadataCatalog.remove("recall")


def proposed(boxes, logits=None) -> dict:
    """What a ProposalNetwork returns for an image."""
    from detectron2.structures import Boxes, Instances

    instances = Instances((400, 400))
    instances.proposal_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    count = len(instances.proposal_boxes)
    instances.objectness_logits = -torch.arange(float(count)) if logits is None else logits
    return {"proposals": instances}


def random_boxes(count: int, largest: float) -> torch.Tensor:
    corner = torch.rand(count, 2) * 200
    return torch.cat([corner, corner + 4 + torch.rand(count, 2) * largest], dim=1)


def random_set(register) -> tuple[str, list[tuple[dict, dict]]]:
    """Crowded images of objects of all sizes, with proposals that lie about them."""
    objects, outputs = {}, []
    for image_id in ("a", "b", "c", "d"):
        boxes = torch.cat([random_boxes(12, 30), random_boxes(12, 90), random_boxes(6, 190)])
        if image_id == "d":
            boxes = boxes[:0]
        objects[image_id] = [(box, int(i % 5 == 0)) for i, box in enumerate(boxes.tolist())]
        near = boxes.repeat(20, 1) + torch.randn(20 * len(boxes), 4) * 6
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        found = torch.cat([near, random_boxes(1050, 100)])[torch.randperm(len(near) + 1050)]
        outputs.append(({"image_id": image_id}, proposed(found, torch.randn(len(found)))))
    return register(objects), outputs


def evaluator_of(name: str, outputs, output_dir=None):
    from hypernet_d2.evaluation import ProposalRecallEvaluator

    evaluator = ProposalRecallEvaluator(name, output_dir)
    for image, output in outputs:
        evaluator.process([image], [output])
    return evaluator


def test_average_recall_is_detectron2s_own(register, tmp_path):
    from detectron2.data.datasets.coco import convert_to_coco_json
    from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
    from pycocotools.coco import COCO

    name, outputs = random_set(register)
    results = evaluator_of(name, outputs, tmp_path).evaluate()["box_proposals"]
    convert_to_coco_json(name, str(tmp_path / "coco.json"))
    coco, predictions = COCO(tmp_path / "coco.json"), [{**i, **o} for i, o in outputs]
    for size, suffix in {"all": "", "small": "s", "medium": "m", "large": "l"}.items():
        for limit in (10, 50, 100, 200, 1000):
            stock = _evaluate_box_proposals(predictions, coco, area=size, limit=limit)
            expected = pytest.approx(100 * stock["ar"].item(), abs=1e-3)
            assert results[f"AR{suffix}@{limit}"] == expected, (size, limit)
            assert 0 < stock["ar"] < 1


def test_curves_and_counts_by_hand(register, tmp_path):
    from hypernet_d2.evaluation.proposal_recall import recall_file

    name = register({1: [([0, 0, 100, 100], 0), ([200, 200, 220, 220], 0)], 2: []})
    boxes = [[300, 0, 320, 20], [200, 200, 220, 220], [0, 0, 100, 61], [0, 0, 100, 99.5]]
    outputs = [({"image_id": 1}, proposed(boxes)), ({"image_id": 2}, proposed([]))]
    results = evaluator_of(name, outputs, tmp_path).evaluate()["box_proposals"]
    summary = json.loads(recall_file(tmp_path, name).read_text())

    assert summary["images"] == 2 and summary["proposals_per_image"] == 2
    assert summary["objects"] == {"all": 2, "small": 1, "medium": 0, "large": 1}
    at_50, at_70 = summary["recall_by_number"]["0.5"], summary["recall_by_number"]["0.7"]
    assert at_50["all"] == [0, 50] + [100] * 998
    assert at_70["all"] == [0, 50, 50] + [100] * 997
    assert at_50["small"] == [0] + [100] * 999
    assert at_50["medium"] == [None] * 1000
    by_iou = dict(zip(summary["ious"], summary["recall_by_iou"]["50"]["large"], strict=True))
    assert [by_iou[iou] for iou in (0.5, 0.99, 1.0)] == [100, 100, 0]
    assert summary["N"]["50"] == {"all": 2, "small": 2, "medium": None, "large": 4}
    assert (results["N@50"], results["N@75"], results["R50@10"]) == (2, 4, 100)
    assert math.isnan(results["ARm@100"])


def test_a_proposal_finds_one_object_and_the_best_pair_goes_first(register):
    twins = [([0, 0, 100, 100], 0), ([0, 0, 100, 90], 0), ([0, 0, 100, 100], 1)]
    name = register({"x": twins})

    def recall(*boxes):
        return evaluator_of(name, [({"image_id": "x"}, proposed(boxes))]).evaluate()

    one = recall([0, 0, 100, 100])["box_proposals"]
    assert one["R50@10"] == 50 and math.isnan(one["N@75"])
    # In the order of the proposals, the first would take the first object from the second.
    two = recall([0, 0, 100, 94], [0, 0, 100, 110])["box_proposals"]
    assert two["R70@10"] == 100 and two["N@75"] == 2


def test_processes_are_summed(register, monkeypatch):
    from detectron2.utils import comm

    name, outputs = random_set(register)
    whole = evaluator_of(name, outputs).evaluate()
    parts = []
    monkeypatch.setattr(comm, "gather", lambda value: parts.append(value) or parts)
    evaluator_of(name, outputs[:3]).evaluate()
    assert evaluator_of(name, outputs[3:]).evaluate() == whole


def test_no_image_is_an_error_and_no_object_is_not(register, tmp_path):
    name = register({0: []})
    with pytest.raises(ValueError, match="'recall': no image was evaluated"):
        evaluator_of(name, []).evaluate()
    outputs = [({"image_id": 0}, proposed([[0, 0, 9, 9]]))]
    results = evaluator_of(name, outputs, tmp_path).evaluate()["box_proposals"]
    assert all(math.isnan(value) for value in results.values())


# Whole models


def build(cfg):
    """A random model whose proposals are about its anchors or windows."""
    from detectron2.modeling import build_model

    model = build_model(cfg).eval()
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME == "RPN":
        torch.nn.init.zeros_(model.proposal_generator.rpn_head.anchor_deltas.weight)
    return model


@pytest.mark.parametrize("config, candidates", [(HYPERNET, 40), (FPN, 4), (C4, 40)])
def test_the_list_to_1000_begins_with_what_the_detector_sees(config, candidates):
    from hypernet_d2.modeling.proposal_generator import proposal_evaluation_cfg, proposal_network

    cfg = tiny_cfg("MODEL.RPN.PRE_NMS_TOPK_TEST", candidates, config=config)
    longer = proposal_evaluation_cfg(cfg)
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 10 and longer.MODEL.RPN.POST_NMS_TOPK_TEST == 1000
    models = [build(c) for c in (cfg, longer)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:  # boxes that suppress each other
        model.proposal_generator.nms_thresh = 0.3
    image = batched_inputs((96, 128))[0]
    del image["instances"]
    with torch.no_grad():
        a, b = (proposal_network(m)([image])[0]["proposals"] for m in models)
    assert len(a) == 10 < len(b)
    assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor[:10])


def test_a_model_that_proposes_nothing_is_refused():
    from detectron2.modeling import build_model

    from hypernet_d2.modeling.proposal_generator import proposal_network

    cfg = tiny_cfg("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    with pytest.raises(ValueError, match="MODEL.PROPOSAL_GENERATOR.NAME other than 'Precomp"):
        proposal_network(build_model(cfg))


@pytest.mark.parametrize("config", [HYPERNET, FPN])
def test_the_command_evaluates_a_detectors_checkpoint(config, tmp_path):
    from hypernet_d2.data import register_voc_style

    write_voc(tmp_path / "set", count=2)
    register_voc_style(f"recall_{tmp_path.name}", tmp_path / "set", "all", ["square", "bar"])
    model = build(tiny_cfg(config=config))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    words = [*TINY, "DATASETS.TEST", (f"recall_{tmp_path.name}",), "OUTPUT_DIR", tmp_path / "out",
             "MODEL.WEIGHTS", tmp_path / "model.pth",
             "MODEL.RPN.PRE_NMS_TOPK_TEST", 2000]  # fmt: skip
    args = argparse.Namespace(
        config_file=str(ROOT / "configs" / config), opts=list(map(str, words)), resume=False,
        num_gpus=1, schedule="joint", eval_only=True, eval_proposals=True,
    )  # fmt: skip
    from hypernet_d2.cli.train import run

    results = run(args)
    assert 0 < results["box_proposals"]["R50@1000"] <= 100
    (path,) = (tmp_path / "out").glob("proposal_recall_*.json")
    assert json.loads(path.read_text())["objects"]["all"] == 4


def test_eval_proposals_alone_is_refused(monkeypatch, capsys):
    from hypernet_d2.cli.train import main

    with pytest.raises(SystemExit):
        main(["--config", HYPERNET, "--eval-proposals"])
    assert "--eval-proposals needs --eval-only" in capsys.readouterr().err
