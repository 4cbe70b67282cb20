"""The alternating training schedule of the paper: six steps to one network (paper 3.4).

1. Pre-train the trunk on ImageNet: ``MODEL.WEIGHTS``, for steps 2 and 3.
2. Train for proposals.
3. Train for detection on the proposals of step 2, from the trunk of step 1.
4. Fine-tune for proposals, sharing the hyper feature of step 3.
5. Fine-tune for detection on the proposals of step 4, with the shared layers fixed.
6. Combine the proposal layers of step 4 and the detection layers of step 5 into one network.

Steps 2 to 5 are ordinary runs of the trainer, each of ``SOLVER.MAX_ITER`` iterations and with a
folder of its own in ``OUTPUT_DIR``. Proposals are stored in detectron2's precomputed-proposal
files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, JSONWriter
from torch import nn

from hypernet_d2.checkpoint import OUTPUT_FILES, HyperNetCheckpointer
from hypernet_d2.checkpoint.class_names import KEY as CLASS_NAMES
from hypernet_d2.evaluation import build_evaluator

from .checks import check_test_time_augmentation, check_tiles
from .proposal_writer import ProposalWriter
from .trainer import Trainer

__all__ = ["train_alternating", "write_results"]

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"  # name of the stock trainer's last checkpoint


@dataclass(frozen=True)
class Step:
    """One training run of the schedule.

    Attributes:
        name: its folder in ``OUTPUT_DIR``.
        task: its description in the log.
        initial_modules: for each module the step that its weights come from; empty for
            ``MODEL.WEIGHTS``. If not empty, the backbone (trunk and hyper feature) is fixed.
        proposals_of: the step whose proposals are used; empty in a step that trains proposals.
    """

    name: str
    task: str
    initial_modules: dict[str, str] = field(default_factory=dict)
    proposals_of: str = ""


STEPS = (
    Step("step2_proposals", "train for proposals"),
    Step("step3_detection", "train for detection", proposals_of="step2_proposals"),
    Step(
        "step4_proposals",
        "fine-tune for proposals on the hyper feature of step 3",
        initial_modules={"backbone": "step3_detection", "proposal_generator": "step2_proposals"},
    ),
    Step(
        "step5_detection",
        "fine-tune for detection on the hyper feature of step 3",
        initial_modules={"backbone": "step3_detection", "roi_heads": "step3_detection"},
        proposals_of="step4_proposals",
    ),
)
UNIFIED_MODULES = {
    "backbone": "step5_detection",
    "proposal_generator": "step4_proposals",
    "roi_heads": "step5_detection",
}


def train_alternating(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Run the six steps, and write the unified network to ``OUTPUT_DIR/model_final.pth``.

    All processes call it together; they share one ``OUTPUT_DIR``.

    Args:
        cfg: the config of the joint model; it is not changed.
        resume: skip the finished steps, and resume an interrupted one from its last checkpoint.
            Otherwise all steps start again, and their earlier results are discarded.

    Returns:
        ``cfg`` with the unified network as ``MODEL.WEIGHTS``.

    Raises:
        ValueError: the config's model does not propose regions by itself, or does not support
            ``TEST.AUG.ENABLED`` or ``MODEL.HYPERNET.TILES``; the config asks for training tiles, a
            best checkpoint or a validation set; or a test set cannot be evaluated, see
            :func:`build_evaluator`.
    """
    _check_model(cfg)
    _check_evaluation(cfg)
    check_test_time_augmentation(cfg)
    check_tiles(cfg)
    for name in cfg.DATASETS.TEST:  # before the steps, not after them
        build_evaluator(cfg, name)
    if not resume:
        _discard(cfg, STEPS)
    for i, step in enumerate(STEPS):
        number, step_cfg = i + 2, _step_config(cfg, step)
        if _is_finished(step_cfg):
            logger.info("Step %d of 6 is finished: %s", number, step_cfg.OUTPUT_DIR)
            continue
        logger.info("Step %d of 6: %s, in %s", number, step.task, step_cfg.OUTPUT_DIR)
        _discard(cfg, STEPS[i + 1 :])
        _run(cfg, step_cfg, step)
    logger.info("Step 6 of 6: the unified network, in %s", cfg.OUTPUT_DIR)
    return _unify(cfg)


class StepTrainer(Trainer):
    """The trainer of steps 2 and 3; step 2 writes its test proposals instead of evaluating them."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """For proposals a :class:`ProposalWriter`, else the data set's evaluator."""
        if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
            return ProposalWriter(_proposal_file(cfg.OUTPUT_DIR, "test", dataset_name))
        return super().build_evaluator(cfg, dataset_name, output_folder)


class SharedFeatureTrainer(StepTrainer):
    """The trainer of steps 4 and 5, in which the backbone is fixed."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, with the parameters and BatchNorm statistics of its backbone fixed."""
        model = super().build_model(cfg)
        for parameter in model.backbone.parameters():
            parameter.requires_grad = False
        model.backbone = FrozenBatchNorm2d.convert_frozen_batchnorm(model.backbone)
        return model


def write_results(cfg: CfgNode, results: dict) -> None:
    """Append the unified network's results to ``OUTPUT_DIR/metrics.json``, as a joint run does."""
    if not comm.is_main_process():
        return
    with EventStorage(len(STEPS) * cfg.SOLVER.MAX_ITER) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        writer = JSONWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json"))
        writer.write()
        writer.close()


def _check_model(cfg: CfgNode) -> None:
    model = cfg.MODEL
    if model.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {model.META_ARCHITECTURE!r}; the alternating schedule "
            "trains a 'GeneralizedRCNN'"
        )
    if model.LOAD_PROPOSALS or model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        raise ValueError(
            f"MODEL.LOAD_PROPOSALS is {model.LOAD_PROPOSALS} and MODEL.PROPOSAL_GENERATOR.NAME is "
            f"{model.PROPOSAL_GENERATOR.NAME!r}; the alternating schedule trains a proposal "
            "generator, and makes the precomputed proposals itself"
        )
    if size := model.HYPERNET.TILES.TRAIN_SIZE:
        raise ValueError(
            f"MODEL.HYPERNET.TILES.TRAIN_SIZE is {size}, but the alternating schedule trains on "
            "whole images; expected TRAIN_SIZE 0, or --schedule joint"
        )


def _check_evaluation(cfg: CfgNode) -> None:
    train = cfg.MODEL.HYPERNET.TRAIN
    for key in ("VAL_DATASETS", "BEST_CHECKPOINT", "VALIDATION_LOSS"):
        if train[key]:
            raise ValueError(
                f"MODEL.HYPERNET.TRAIN.{key} is {train[key]}; the alternating schedule evaluates "
                f"the unified network only, at the end; expected {type(train[key])()!r}"
            )


def _step_config(cfg: CfgNode, step: Step) -> CfgNode:
    """The config of one step, for the stock trainer."""
    out = cfg.clone()
    out.defrost()
    out.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, step.name)
    # These concern the unified network.
    out.TEST.EXPECTED_RESULTS = []
    out.TEST.AUG.ENABLED = False
    out.MODEL.HYPERNET.TILES.SIZE = 0
    if step.initial_modules:
        out.MODEL.WEIGHTS = os.path.join(out.OUTPUT_DIR, "model_init.pth")
    if step.proposals_of:
        folder = os.path.join(cfg.OUTPUT_DIR, step.proposals_of)
        out.MODEL.LOAD_PROPOSALS = True
        out.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
        for split in ("TRAIN", "TEST"):
            files = tuple(_proposal_file(folder, split.lower(), n) for n in cfg.DATASETS[split])
            out.DATASETS[f"PROPOSAL_FILES_{split}"] = files
            topk = cfg.MODEL.RPN[f"POST_NMS_TOPK_{split}"]
            out.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"] = topk
    else:
        out.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    out.freeze()
    return out


def _proposal_file(folder: str, split: str, dataset_name: str) -> str:
    return os.path.join(folder, f"proposals_{split}_{dataset_name}.pkl")


def _proposal_files(cfg: CfgNode) -> list[str]:
    """The files that a step which trains proposals writes, for its config."""
    return [
        _proposal_file(cfg.OUTPUT_DIR, split.lower(), name)
        for split in ("TRAIN", "TEST")
        for name in cfg.DATASETS[split]
    ]


def _is_finished(cfg: CfgNode) -> bool:
    """Whether the step of this config has its last checkpoint and all its proposals."""
    # The checkpointer writes the name of a checkpoint here once it is complete.
    last = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not OUTPUT_FILES.isfile(last):
        return False
    with OUTPUT_FILES.open(last) as file:
        finished = file.read() == FINAL
    files = [] if cfg.MODEL.LOAD_PROPOSALS else _proposal_files(cfg)
    return finished and all(OUTPUT_FILES.isfile(path) for path in files)


def _discard(cfg: CfgNode, steps: Sequence[Step]) -> None:
    """Make these steps unfinished. Their checkpoints are kept until they are overwritten."""
    comm.synchronize()
    if comm.is_main_process():
        # From the last one on, so that an interruption leaves the first steps finished.
        for step in reversed(steps):
            step_cfg = _step_config(cfg, step)
            last = os.path.join(step_cfg.OUTPUT_DIR, "last_checkpoint")
            for path in [last, *_proposal_files(step_cfg)]:
                if OUTPUT_FILES.isfile(path):
                    OUTPUT_FILES.rm(path)
    comm.synchronize()


def _run(cfg: CfgNode, step_cfg: CfgNode, step: Step) -> None:
    """Train one step, or the rest of it, and write its training proposals."""
    if comm.is_main_process():
        OUTPUT_FILES.mkdirs(step_cfg.OUTPUT_DIR)
        with OUTPUT_FILES.open(os.path.join(step_cfg.OUTPUT_DIR, "config.yaml"), "w") as file:
            file.write(step_cfg.dump())
    if step.initial_modules:
        _combine(cfg, step.initial_modules, step_cfg.MODEL.WEIGHTS)
    # As if each step were a command of its own, so that a skipped step changes no later one.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    trainer = (SharedFeatureTrainer if step.initial_modules else StepTrainer)(step_cfg)
    trainer.checkpointer.strict = bool(step.initial_modules)
    trainer.resume_or_load(resume=True)
    trainer.train()
    comm.synchronize()
    if not step.proposals_of:
        _write_training_proposals(step_cfg)


def _write_training_proposals(cfg: CfgNode) -> None:
    """Propose regions in the training images, as many as a detector is trained on."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    rpn = cfg.MODEL.RPN
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN
    model = Trainer.build_model(cfg)
    HyperNetCheckpointer(model, strict=True).load(os.path.join(cfg.OUTPUT_DIR, FINAL))
    paths = [_proposal_file(cfg.OUTPUT_DIR, "train", name) for name in cfg.DATASETS.TRAIN]
    Trainer.test(cfg, model, [ProposalWriter(path) for path in paths])


def _unify(cfg: CfgNode) -> CfgNode:
    """Step 6; the unified network becomes the last checkpoint of ``OUTPUT_DIR``."""
    out = cfg.clone()
    out.defrost()
    out.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, FINAL)
    out.freeze()
    _combine(cfg, UNIFIED_MODULES, out.MODEL.WEIGHTS)
    if comm.is_main_process():
        with OUTPUT_FILES.open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w") as file:
            file.write(FINAL)
    return out


def _combine(cfg: CfgNode, modules: dict[str, str], path: str) -> None:
    """Write a checkpoint of several steps' modules: {name of the module: name of the step}."""
    if comm.is_main_process():
        combined = {"model": {}}
        for step in sorted(set(modules.values())):
            with OUTPUT_FILES.open(os.path.join(cfg.OUTPUT_DIR, step, FINAL), "rb") as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            for name, weight in checkpoint["model"].items():
                if modules.get(name.split(".")[0]) == step:
                    combined["model"][name] = weight
            if CLASS_NAMES in checkpoint:  # the same in all steps
                combined[CLASS_NAMES] = checkpoint[CLASS_NAMES]
        with OUTPUT_FILES.open(path, "wb") as file:
            torch.save(combined, file)
    comm.synchronize()
