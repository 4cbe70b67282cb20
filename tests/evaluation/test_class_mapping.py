"""Classes are matched by name: a data set may number them in another way than the model."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.sets import BOXES, NAMES, PerfectDetector, coco_content
from tests.helpers import tiny_cfg

pytestmark = pytest.mark.detectron2


def config(tmp_path, train: str, test: str, *opts):
    fixed = ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "MODEL.ROI_HEADS.NUM_CLASSES",
             len(NAMES), "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 1,
             "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 0, "MODEL.WEIGHTS", ""]  # fmt: skip
    return tiny_cfg(*fixed, *opts)


VAL_SETS = {
    "other ids": (NAMES[::-1], None),
    "without the last class": (NAMES[:2], None),
    "without the first class": (NAMES[1:], None),
    "one class": (("cat",), None),
    "a class without an object": (NAMES, [("owl", BOXES["owl"])]),
}


@pytest.mark.parametrize("evaluator", ["coco", "pascal_voc"])
@pytest.mark.parametrize("kind", VAL_SETS)
def test_a_perfect_detector_is_perfect(register, tmp_path, kind, evaluator):
    from hypernet_d2.checkpoint import set_class_names
    from hypernet_d2.engine import Trainer

    names, objects = VAL_SETS[kind]
    train = register(coco_content(), "train_set")
    val = register(coco_content(names, objects), "val_set")
    cfg = config(tmp_path, train, val, "MODEL.HYPERNET.EVALUATOR", evaluator)
    model = PerfectDetector(NAMES, train, val)
    set_class_names(model, NAMES)
    results = Trainer.test(cfg, model)["bbox"]
    assert results["AP50"] == pytest.approx(100)
    # Found under another name they do not count. AP of no detection at all is NaN in detectron2.
    wrong = PerfectDetector(("dog", "cat", "owl"), train, val)
    set_class_names(wrong, NAMES)
    assert not Trainer.test(cfg, wrong)["bbox"]["AP50"] >= 1


def test_without_class_names_in_the_checkpoint_the_training_set_has_them(register, tmp_path):
    from hypernet_d2.data import load_dataset
    from hypernet_d2.engine import Trainer

    train = register(coco_content(), "train_set")
    val = register(coco_content(NAMES[::-1]), "val_set")
    load_dataset(train)
    results = Trainer.test(config(tmp_path, train, val), PerfectDetector(NAMES, train, val))
    assert results["bbox"]["AP50"] == pytest.approx(100)


def test_a_class_that_the_model_does_not_have_is_named_before_training(register, tmp_path):
    from hypernet_d2.engine import Trainer

    train = register(coco_content(), "train_set")
    val = register(coco_content(("owl", "dog", "zebra"), [("owl", BOXES["owl"])]), "val_set")
    message = (
        r"'val_set' has the classes \['owl', 'dog', 'zebra'\], but the training set 'train_set' "
        r"has \['owl', 'dog', 'cat'\]: 'zebra' cannot be matched"
    )
    with pytest.raises(ValueError, match=message):
        Trainer(config(tmp_path, train, val))


def test_class_names_travel_with_the_checkpoint(register, tmp_path):
    from hypernet_d2.checkpoint import HyperNetCheckpointer, get_class_names
    from hypernet_d2.engine import Predictor, Trainer

    train = register(coco_content(), "train_set")
    val = register(coco_content(NAMES[::-1]), "val_set")
    cfg = config(tmp_path, train, val, "SOLVER.IMS_PER_BATCH", 2)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    weights = str(tmp_path / "out/model_final.pth")
    assert torch.load(weights, weights_only=True)["class_names"] == list(NAMES)

    model = Trainer.build_model(cfg)
    assert get_class_names(model) is None
    HyperNetCheckpointer(model, strict=True).load(weights)
    assert get_class_names(model) == list(NAMES)

    predictor = Predictor(config(tmp_path, train, val, "MODEL.WEIGHTS", weights))
    assert predictor.metadata.thing_classes == list(NAMES)
    # Of a set that numbers its classes in another way, ids do not fit the model's numbers.
    assert predictor.metadata.get("thing_dataset_id_to_contiguous_id") is None

    other = register(coco_content(("cat", "dog", "owl")), "other_set")
    resumed = Trainer(config(tmp_path, other, val, "SOLVER.MAX_ITER", 2))
    with pytest.raises(ValueError, match=r"classes \['owl', 'dog', 'cat'\], but the training data"):
        resumed.resume_or_load(resume=True)
    # As initial weights they may be of any classes.
    fine_tuned = Trainer(config(tmp_path, other, val, "MODEL.WEIGHTS", weights))
    fine_tuned.resume_or_load(resume=False)
    assert get_class_names(fine_tuned.model) == ["cat", "dog", "owl"]


def test_a_predictor_without_class_names_has_a_name_for_each_class(register, tmp_path):
    from hypernet_d2.engine import Predictor, Trainer

    val = register(coco_content(NAMES[:2]), "val_set")
    cfg = config(tmp_path, val, val)
    weights = tmp_path / "model.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    predictor = Predictor(config(tmp_path, val, val, "MODEL.WEIGHTS", str(weights)))
    assert predictor.metadata.thing_classes == ["owl", "dog", "class 2"]
