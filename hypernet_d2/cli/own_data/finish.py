"""What follows a training on data of one's own, and the line that shows its progress."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from hypernet_d2.checkpoint import OUTPUT_FILES
from hypernet_d2.evaluation.report import write_report

__all__ = ["ProgressBar", "finish", "weights_of"]

WEIGHTS = ("model_best.pth", "model_final.pth")


def weights_of(folder: str) -> str:
    """The best weights of a training, or else the final ones."""
    paths = [os.path.join(folder, name) for name in WEIGHTS]
    return next((path for path in paths if OUTPUT_FILES.isfile(path)), paths[-1])


def finish(cfg: CfgNode, config_file: str, evaluate: Callable[[CfgNode, bool], dict]) -> dict:
    """Evaluate the best weights on the validation and the test split, and print what comes next.

    Each process has to call this.

    Args:
        cfg: of the training that has ended.
        config_file: of the training.
        evaluate: takes a config and whether the last checkpoint is evaluated.

    Returns:
        {data set: results of `evaluate`}. Those of the test split are in ``OUTPUT_DIR/test``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights_of(cfg.OUTPUT_DIR)
    results = {}
    test = f"{cfg.DATASETS.TRAIN[0].removesuffix('train')}test"
    if test in DatasetCatalog and test not in cfg.DATASETS.TEST:
        other = cfg.clone()
        other.DATASETS.TEST = (test,)
        other.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "test")
        results[test] = evaluate(other, False)
    validation = evaluate(cfg, False)
    names = cfg.DATASETS.TEST
    results.update({names[0]: validation} if len(names) == 1 else validation)
    if comm.is_main_process():
        print(summarize(cfg, config_file, results), flush=True)
        if "://" not in cfg.OUTPUT_DIR:
            print(f"report: {write_report(cfg.OUTPUT_DIR)}")
    return results


def summarize(cfg: CfgNode, config_file: str, results: dict) -> str:
    """The AP on each split, where the files are, and the next commands."""
    lines = [""]
    for name, tasks in results.items():
        for task, metrics in tasks.items():
            found = ", ".join(
                f"{key} {metrics[key]:.1f}" for key in ("AP", "AP50", "AP75") if key in metrics
            )
            lines.append(f"{name}: {task} {found}")
    weights = f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}"
    export = os.path.join(cfg.OUTPUT_DIR, "exported")
    return "\n".join(
        [
            *lines,
            f"weights: {cfg.MODEL.WEIGHTS}",
            f"config: {config_file}",
            "next:",
            f"  hypernet-d2 detect --config-file {config_file} --input IMAGES "
            f"--output {os.path.join(cfg.OUTPUT_DIR, 'detections')} --opts {weights}",
            f"  hypernet-d2 export --config-file {config_file} --format onnx --output {export} "
            f"{weights}",
        ]
    )


class ProgressBar(HookBase):
    """A line on stderr with the iteration, the time left and the loss."""

    def before_train(self) -> None:
        self._bar = tqdm(
            desc="training", initial=self.trainer.start_iter, total=self.trainer.max_iter,
            unit="iteration", dynamic_ncols=True,
        )  # fmt: skip

    def after_step(self) -> None:
        if "total_loss" in self.trainer.storage.histories():
            loss = self.trainer.storage.history("total_loss").median(20)
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()
