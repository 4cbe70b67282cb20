"""The paper's alternating training: six steps to one network (paper 3.4).

1. Pre-train the trunk on ImageNet: ``MODEL.WEIGHTS``, for steps 2 and 3.
2. Train for proposals.
3. Train for detection on the proposals of 2, from the trunk of 1.
4. Fine-tune for proposals, sharing the hyper feature of 3.
5. Fine-tune for detection on the proposals of 4, the shared layers fixed.
6. The unified network: the proposals of 4 and the detection of 5 on one hyper feature.

Steps 2 to 5 are ordinary runs of the trainer, each of ``SOLVER.MAX_ITER`` iterations and with a
folder of its own below ``OUTPUT_DIR``. Proposals are handed on in detectron2's own
precomputed-proposal files.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import BoxMode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, JSONWriter
from torch import nn

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.utils.files import replacing

from .trainer import Trainer

__all__ = ["ProposalWriter", "train_alternating", "write_results"]

logger = logging.getLogger(__name__)

FINAL = "model_final.pth"  # the name that the stock trainer gives to its last checkpoint


@dataclass(frozen=True)
class Step:
    """One training run of the schedule.

    Attributes:
        name: its folder below ``OUTPUT_DIR``.
        task: what it is for, in the log.
        starts_from: the step that each module's weights come from; empty for ``MODEL.WEIGHTS``.
            With it, the backbone (trunk and hyper feature) is shared and stays as it is.
        proposals_of: the step that proposed the regions; empty in a step that learns to propose.
    """

    name: str
    task: str
    starts_from: dict[str, str] = field(default_factory=dict)
    proposals_of: str = ""


STEPS = (
    Step("step2_proposals", "train for proposals"),
    Step("step3_detection", "train for detection", proposals_of="step2_proposals"),
    Step(
        "step4_proposals",
        "fine-tune for proposals on the hyper feature of step 3",
        starts_from={"backbone": "step3_detection", "proposal_generator": "step2_proposals"},
    ),
    Step(
        "step5_detection",
        "fine-tune for detection on the hyper feature of step 3",
        starts_from={"backbone": "step3_detection", "roi_heads": "step3_detection"},
        proposals_of="step4_proposals",
    ),
)
UNIFIED = {
    "backbone": "step5_detection",
    "proposal_generator": "step4_proposals",
    "roi_heads": "step5_detection",
}


def train_alternating(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Run the six steps, and write the unified network to ``OUTPUT_DIR/model_final.pth``.

    All processes call it together, and ``OUTPUT_DIR`` is one folder for all of them.

    Args:
        cfg: the config of the joint model; it is not changed.
        resume: skip the steps that are finished, and go on with an interrupted one from its last
            checkpoint. Otherwise all start anew, and what they wrote before no longer counts.

    Returns:
        ``cfg`` with the unified network as ``MODEL.WEIGHTS``.

    Raises:
        ValueError: if the config's model does not propose regions by itself.
    """
    _check_model(cfg)
    if not resume:
        _forget(cfg, STEPS)
    for i, step in enumerate(STEPS):
        number, step_cfg = i + 2, _config_of(cfg, step)
        if _is_finished(step_cfg):
            logger.info("Step %d of 6 is finished: %s", number, step_cfg.OUTPUT_DIR)
            continue
        logger.info("Step %d of 6: %s, in %s", number, step.task, step_cfg.OUTPUT_DIR)
        _forget(cfg, STEPS[i + 1 :])
        _run(cfg, step_cfg, step)
    logger.info("Step 6 of 6: the unified network, in %s", cfg.OUTPUT_DIR)
    return _unify(cfg)


class ProposalWriter(DatasetEvaluator):
    """Writes what a ProposalNetwork proposes as one of detectron2's precomputed-proposal files.

    The file is a pickled dict with a list over the images under each of ``ids``, ``boxes``
    ((n, 4) float32, x1 y1 x2 y2 in pixels of the stored image) and ``objectness_logits`` ((n,)
    float32, best first), and the ``bbox_mode`` of all boxes. It appears when it is complete.
    """

    def __init__(self, path: str):
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._rows: list[tuple] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the proposals of some images."""
        for image, output in zip(inputs, outputs, strict=True):
            proposals = output["proposals"].to("cpu")
            boxes, logits = proposals.proposal_boxes.tensor, proposals.objectness_logits
            self._rows.append((image["image_id"], boxes.numpy(), logits.numpy()))

    def evaluate(self) -> None:
        """Write the file, in the main process, with the images of all processes."""
        gathered = comm.gather(self._rows)
        if comm.is_main_process():
            ids, boxes, logits = (list(x) for x in zip(*itertools.chain(*gathered), strict=True))
            mode = BoxMode.XYXY_ABS.value
            with replacing(self.path) as file:
                pickle.dump(
                    {"ids": ids, "boxes": boxes, "objectness_logits": logits, "bbox_mode": mode},
                    file,
                )
        comm.synchronize()


class StepTrainer(Trainer):
    """The trainer of steps 2 and 3; in place of an evaluation, step 2 writes its test proposals."""

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """For proposals a :class:`ProposalWriter`, else the data set's evaluator."""
        if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
            return ProposalWriter(_proposal_file(cfg.OUTPUT_DIR, "test", dataset_name))
        return super().build_evaluator(cfg, dataset_name, output_folder)


class SharedFeatureTrainer(StepTrainer):
    """The trainer of steps 4 and 5: as that of 2 and 3, but the shared layers stay as they are."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model; the parameters and the statistics of its backbone are fixed."""
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


def _config_of(cfg: CfgNode, step: Step) -> CfgNode:
    """The config of one step: an ordinary one of detectron2."""
    out = cfg.clone()
    out.defrost()
    out.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, step.name)
    out.TEST.EXPECTED_RESULTS = []  # they are those of the unified network
    if step.starts_from:
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


def _is_finished(cfg: CfgNode) -> bool:
    """Whether the step of this config has its last checkpoint and all its proposals."""
    files = []
    if not cfg.MODEL.LOAD_PROPOSALS:
        files += [_proposal_file(cfg.OUTPUT_DIR, "train", name) for name in cfg.DATASETS.TRAIN]
        files += [_proposal_file(cfg.OUTPUT_DIR, "test", name) for name in cfg.DATASETS.TEST]
    # The checkpointer names a checkpoint here once it is written to its end.
    last = Path(cfg.OUTPUT_DIR, "last_checkpoint")
    return last.is_file() and last.read_text() == FINAL and all(map(os.path.isfile, files))


def _forget(cfg: CfgNode, steps: Sequence[Step]) -> None:
    """Make these steps unfinished; of what they wrote, the checkpoints stay until overwritten."""
    comm.synchronize()
    if comm.is_main_process():
        # Backwards: what an interruption leaves is a finished beginning.
        for step in reversed(steps):
            folder = Path(cfg.OUTPUT_DIR, step.name)
            for path in [folder / "last_checkpoint", *folder.glob("proposals_*.pkl")]:
                path.unlink(missing_ok=True)
    comm.synchronize()


def _run(cfg: CfgNode, step_cfg: CfgNode, step: Step) -> None:
    """Train one step, or what is left of it, and write its training proposals."""
    if comm.is_main_process():
        folder = Path(step_cfg.OUTPUT_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(step_cfg.dump())
    if step.starts_from:
        _combine(cfg, step.starts_from, step_cfg.MODEL.WEIGHTS)
    # As if each step were a command of its own, so that a skipped step changes no later one.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    trainer = (SharedFeatureTrainer if step.starts_from else StepTrainer)(step_cfg)
    trainer.checkpointer.strict = bool(step.starts_from)
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
    _combine(cfg, UNIFIED, out.MODEL.WEIGHTS)
    if comm.is_main_process():
        with replacing(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")) as file:
            file.write(FINAL.encode())
    return out


def _combine(cfg: CfgNode, parts: dict[str, str], path: str) -> None:
    """Write a checkpoint whose modules, the keys of ``parts``, come from the steps it names."""
    if comm.is_main_process():
        model = {}
        for name in sorted(set(parts.values())):
            file = os.path.join(cfg.OUTPUT_DIR, name, FINAL)
            state = torch.load(file, map_location="cpu", weights_only=True)["model"]
            model.update({k: v for k, v in state.items() if parts.get(k.split(".")[0]) == name})
        with replacing(path) as file:
            torch.save({"model": model}, file)
    comm.synchronize()
