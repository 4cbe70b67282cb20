"""The best checkpoint by a metric, and early stopping."""

from __future__ import annotations

import logging
import os

import torch
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import distributed, nn

from hypernet_d2.checkpoint import OUTPUT_FILES, HyperNetCheckpointer

__all__ = ["BEST_FILE", "BestCheckpoint", "EarlyStop"]

logger = logging.getLogger(__name__)

BEST_FILE = "model_best.pth"


class EarlyStop(BaseException):
    """Ends the training loop; not an error, so that detectron2 logs no traceback."""


class BestWeights(HyperNetCheckpointer):
    """Writes the weights alone, to a file that no run resumes from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Leave ``last_checkpoint`` as it is: it names the latest state of the training."""


class BestCheckpoint(hooks.BestCheckpointer):
    """`detectron2.engine.hooks.BestCheckpointer` that can be resumed, and stops early.

    The file has the score and the iteration of its weights, and a resumed run reads them from
    there, so that they always belong together. All processes have this hook.
    """

    def __init__(
        self, eval_period: int, model: nn.Module, output_dir: str, metric: str, patience: int = 0
    ):
        """
        Args:
            eval_period: iterations between two evaluations, more than 0.
            model: whose weights are saved.
            output_dir: of ``model_best.pth``.
            metric: name of the scalar; ``validation_loss*`` is minimized, others are maximized.
            patience: number of evaluations without a better score after which training stops; 0
                for no limit.
        """
        mode = "min" if metric.startswith("validation_loss") else "max"
        checkpointer = BestWeights(model, output_dir)
        super().__init__(eval_period, checkpointer, metric, mode)
        self._model = model
        self._patience = patience
        self._path = os.path.join(output_dir, BEST_FILE)

    def before_train(self) -> None:
        """Read the best score of the run that is resumed; a run that had stopped stops again."""
        if self.trainer.start_iter > 0 and OUTPUT_FILES.isfile(self._path):
            with OUTPUT_FILES.open(self._path, "rb") as file:
                saved = torch.load(file, map_location="cpu", weights_only=True)
            if saved["metric"] == self._val_metric:
                self.best_metric, self.best_iter = saved["score"], saved["iteration"]
            else:
                logger.warning(
                    "the best %s is not known: %s is of the best %s, and will be overwritten",
                    self._val_metric, self._path, saved["metric"],
                )  # fmt: skip
        if self._patience_is_over(self.trainer.start_iter - 1):
            self.trainer.max_iter = self.trainer.start_iter
            raise EarlyStop

    def after_step(self) -> None:
        """After an evaluation, save the weights, or stop.

        Raises:
            EarlyStop: in all processes; ``model_final.pth`` is written, and this iteration is the
                trainer's last one.
        """
        super().after_step()
        iteration = self.trainer.iter
        if (iteration + 1) % self._period == 0 and self._patience_is_over(iteration):
            self.trainer.checkpointer.save("model_final", iteration=iteration)
            self.trainer.max_iter = iteration + 1
            raise EarlyStop

    def load_best(self) -> bool:
        """Give the model the best weights, in all processes.

        Returns:
            False, with a warning, if no evaluation had a finite score.
        """
        if not comm.all_gather(self.best_iter is not None)[0]:
            logger.warning("there are no best weights: no %s was finite", self._val_metric)
            return False
        if comm.is_main_process():
            HyperNetCheckpointer(self._model, strict=True).load(self._path, checkpointables=[])
        if comm.get_world_size() > 1:  # the others may not see the file
            for value in self._model.state_dict().values():
                sent = value.contiguous()  # not all are: some are in channels-last layout
                distributed.broadcast(sent, 0)
                value.copy_(sent)
        return True

    def _best_checking(self) -> None:
        if not comm.is_main_process():
            return
        value, when = self.trainer.storage.latest().get(self._val_metric, (None, None))
        if value is None or when != self.trainer.storage.iter:
            logger.warning("this evaluation has no %s; no checkpoint for it", self._val_metric)
            return
        last = self.best_metric
        if last is not None and not self._compare(value, last):
            logger.info(
                "%s is %.5g, not better than %.5g of iteration %d",
                self._val_metric, value, last, self.best_iter,
            )  # fmt: skip
        elif self._update_best(value, min(self.trainer.iter, self.trainer.max_iter - 1)):
            self._checkpointer.save(
                self._file_prefix,
                metric=self._val_metric,
                score=float(value),
                iteration=self.best_iter,
            )
            logger.info("%s is %.5g, the best so far: %s", self._val_metric, value, self._path)

    def _patience_is_over(self, iteration: int) -> bool:
        """Whether the last evaluations until this iteration had no better score.

        All processes get the answer of the main one.
        """
        if not self._patience or iteration + 1 >= self.trainer.max_iter:
            return False
        since = -1 if self.best_iter is None else self.best_iter
        evaluations = (iteration - since) // self._period
        over = comm.all_gather(evaluations >= self._patience)[0]
        if over:
            logger.info(
                "training stops after iteration %d: %d evaluations without a better %s "
                "(MODEL.HYPERNET.TRAIN.PATIENCE is %d)",
                iteration, evaluations, self._val_metric, self._patience,
            )  # fmt: skip
        return over
