"""What to try next: rules that read the figures of a report, and name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from hypernet_d2.config import hypernet_node
from hypernet_d2.utils.images import fit_size

from .analysis import Analysis
from .training import VALIDATION_LOSS, Training

__all__ = ["RunFiles", "give_advice", "input_scale"]

SMALL_SIDE, RATHER_SMALL_SIDE = 10, 32  # pixels of the network's input
MIN_OBJECTS = 100  # of the evaluated set, below which its figures vary much
MIN_TRAINING_OBJECTS = 50  # of a class
MIN_SHARE = 0.15  # of the errors or the objects, for a rule to be named
MIN_LOST = 2.0  # points of AP50
FEW_PASSES = 8  # over the training images
OVERFITTING = 1.1  # last loss of validation divided by the smallest
STILL_RISING = 1.0  # points of AP in the last quarter of the training
SURE_SCORE = 0.8
MIN_RECALL = 90.0  # percent of the objects with a proposal of IoU 0.5


@dataclass(frozen=True)
class RunFiles:
    """What a training leaves beside its detections.

    Attributes:
        cfg: its config.
        training: its curves.
        training_objects: (K,), objects of each class in the training set; None if unknown.
        recall: content of the file of ProposalRecallEvaluator; None if there is none.
        training_images: number of images of the training set; None if unknown.
    """

    cfg: CfgNode
    training: Training
    training_objects: np.ndarray | None
    recall: dict | None
    training_images: int | None = None


def input_scale(cfg: CfgNode, height: int, width: int) -> float:
    """Pixels of the network's input at test time for a pixel of an image."""
    size = (height, width)
    if tile := hypernet_node(cfg).TILES.SIZE:
        size = min(height, tile), min(width, tile)
    return fit_size(size, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)[0] / size[0]


def give_advice(analysis: Analysis, run: RunFiles) -> list[str]:
    """Sentences on what to try, the most important first."""
    rules = (
        _amount,
        _passes,
        _unlabeled,
        _input_size,
        _training,
        _classes,
        _confusion,
        _errors,
        _proposals,
        _limits,
    )
    return [text for rule in rules for text in rule(analysis, run)]


def _amount(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    objects = int(analysis.data.objects.sum())
    if objects < MIN_OBJECTS:
        yield (
            f"The evaluated set has only {objects} objects in {len(analysis.data.images)} images: "
            "differences of several points of AP may be chance. Label more images for validation."
        )


def _passes(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    if not run.training_images or hypernet_node(run.cfg).TILES.TRAIN_SIZE:
        return
    solver = run.cfg.SOLVER
    passes = solver.MAX_ITER * solver.IMS_PER_BATCH / run.training_images
    if passes < FEW_PASSES:
        wanted = FEW_PASSES * run.training_images / solver.IMS_PER_BATCH
        yield (
            f"The training has seen each of {run.training_images} images {passes:.1f} times, which "
            f"is little: try SOLVER.MAX_ITER {wanted:.0f} or more (now {solver.MAX_ITER})."
        )


def _unlabeled(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    data = analysis.data
    sure = (analysis.errors.kinds == "background") & (data.scores >= SURE_SCORE)
    count, wrong = int(sure.sum()), int(analysis.wrong.sum())
    if count < 5 or count < MIN_SHARE * wrong:
        return
    images, numbers = np.unique(data.image_of[sure], return_counts=True)
    most = [
        f"{Path(data.images[images[i]]['file_name']).name} ({numbers[i]})"
        for i in np.argsort(-numbers, kind="stable")[:3]
    ]
    yield (
        f"{count} of the {wrong} wrong detections have a score of at least {SURE_SCORE:g} and lie "
        f"on no labeled object: these may be objects without a label, most in {', '.join(most)}. "
        "Look at those pictures first: missing labels cost more than any setting."
    )


def _input_size(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    data, cfg = analysis.data, run.cfg
    lost = data.objects & ~analysis.found
    if not lost.any():
        return
    scales = np.array([input_scale(cfg, one["height"], one["width"]) for one in data.images])
    sides = np.sqrt(data.areas) * scales[data.object_image]
    share = (sides[lost] < SMALL_SIDE).mean()
    setting = f"INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST})"
    tiles = "" if hypernet_node(cfg).TILES.SIZE else ", or detect in tiles (MODEL.HYPERNET.TILES)"
    if share >= MIN_SHARE:
        yield (
            f"{_percent(share)} of the {lost.sum()} objects that are not found are under "
            f"{SMALL_SIDE} pixels of the network's input: raise {setting}{tiles}."
        )
        return
    names = list(analysis.sizes)
    if len(names) < 2:
        return
    small, large = (analysis.found[analysis.of_size(name)].mean() for name in (names[0], names[-1]))
    median = float(np.median(sides[analysis.of_size(names[0])]))
    if large - small >= MIN_SHARE and median < RATHER_SMALL_SIDE:
        yield (
            f"{_percent(small)} of the objects of the {analysis.describe_size(names[0])} are "
            f"found, against {_percent(large)} of the {analysis.describe_size(names[-1])}; the "
            f"small ones have a median of {median:.0f} pixels of the network's input: try a larger "
            f"{setting}{tiles}."
        )


def _training(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    curves = run.training.curves
    if VALIDATION_LOSS in curves and len(curves[VALIDATION_LOSS][0]) >= 3:
        iterations, losses = curves[VALIDATION_LOSS]
        best = int(losses.argmin())
        if losses[-1] >= OVERFITTING * losses[best]:
            yield (
                f"The validation loss was least ({losses[best]:.2f}) at iteration "
                f"{iterations[best] + 1} and is {losses[-1]:.2f} at the end: the model overfits. "
                "Use the best checkpoint, more images, stronger augmentation, or fewer iterations."
            )
    points = run.training.precision(analysis.data.name)
    if points is None or len(points[0]) < 3:
        return
    iterations, precision = points
    before = precision[iterations <= 0.75 * iterations[-1]]
    if len(before) and precision[-1] >= before.max() + STILL_RISING:
        yield (
            f"AP still rises: {before.max():.1f} in the first three quarters of the training, "
            f"{precision[-1]:.1f} at the end. Train longer (SOLVER.MAX_ITER, now "
            f"{run.cfg.SOLVER.MAX_ITER}, and SOLVER.STEPS)."
        )


def _classes(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    if run.training_objects is None:
        return
    precision = np.array(
        [analysis.results["all"].of_class(label).ap for label in range(len(analysis.data.classes))]
    )
    mean = np.nanmean(precision)
    for label in np.argsort(precision):
        count = int(run.training_objects[label])
        if count < MIN_TRAINING_OBJECTS and precision[label] < mean:
            yield (
                f"Class {analysis.data.classes[label]} has {count} objects in the training set "
                f"and an AP of {precision[label]:.1f} (mean {mean:.1f}): label more of it, or show "
                "its images more often (DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler)."
            )


def _confusion(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    matrix, classes = analysis.confusion, analysis.data.classes
    inner = matrix[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
    for flat in np.argsort(-inner, axis=None)[:3]:
        row, column = np.unravel_index(flat, inner.shape)
        count, total = inner[row, column], matrix[row].sum()
        if count >= 3 and count >= MIN_SHARE * total:
            yield (
                f"{count} of {total} objects of class {classes[row]} "
                f"({_percent(count / total)}) are detected as {classes[column]}: compare the "
                "labels of the two classes, and add images that tell them apart."
            )


def _errors(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    count, lost = analysis.errors.count, analysis.lost
    cfg = run.cfg
    rules = {
        "missed": (
            f"{count('missed')} objects are missed without any detection near them",
            "look at them below; more training images of such objects, or a larger input, help",
        ),
        "localization": (
            f"{count('localization')} detections have the right class, but an IoU of less than 0.5",
            "look whether the labeled boxes are tight; a larger input, windows that fit the "
            "objects (hypernet-d2 suggest-windows), or longer training help",
        ),
        "background": (
            f"{count('background')} detections lie on no labeled object",
            "look at them below for objects without a label; more training images, also without "
            "objects, help",
        ),
        "duplicate": (
            f"{count('duplicate')} detections repeat another one",
            f"lower MODEL.ROI_HEADS.NMS_THRESH_TEST (now {cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST:g})",
        ),
    }
    for kind in sorted(rules, key=lambda kind: -lost[kind]):
        if lost[kind] >= MIN_LOST and count(kind):
            found, remedy = rules[kind]
            yield f"{found}, which costs {lost[kind]:.1f} points of AP50: {remedy}."


def _proposals(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    if run.recall is None:
        return
    number = run.cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    curve = run.recall["recall_by_number"]["0.5"]["all"]
    if curve is None:
        return
    recall = curve[min(number, len(curve)) - 1]
    if recall < MIN_RECALL:
        at_most = max(curve)
        more = f"with {len(curve)} proposals it is {at_most:.1f} %: "
        remedy = (
            "raise MODEL.RPN.POST_NMS_TOPK_TEST"
            if at_most - recall > 3
            else "choose windows that fit the objects (hypernet-d2 suggest-windows)"
        )
        yield (
            f"{recall:.1f} % of the objects have one of the {number} proposals with an IoU of 0.5; "
            f"{more}{remedy}."
        )


def _limits(analysis: Analysis, run: RunFiles) -> Iterator[str]:
    data = analysis.data
    most = int(np.bincount(data.object_image[data.objects]).max())
    limits = {
        "TEST.DETECTIONS_PER_IMAGE": run.cfg.TEST.DETECTIONS_PER_IMAGE,
        "MODEL.RPN.POST_NMS_TOPK_TEST": run.cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
    }
    for key, limit in limits.items():
        if 0 <= limit < most and not hypernet_node(run.cfg).TILES.SIZE:
            yield f"An image has {most} objects, but {key} is {limit}: raise it above {most}."


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
