"""Values of a config that are chosen from a data set: figures in, values and reasons out.

Nothing here reads files or needs PyTorch. Notation: n images, m objects.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "Choice",
    "DataFigures",
    "Speed",
    "choose_flip",
    "choose_input_size",
    "choose_limits",
    "choose_schedule",
    "choose_tiles",
    "choose_training",
]

OBJECT_SIDE = 16  # pixels of the network's input that nine of ten objects shall have at least
SMALL_SHARE = 0.1
MAX_SHORT_SIDE = {"cpu": 320, "cuda": 800}
MIN_SHORT_SIDE = 240  # unless the images themselves are smaller
SIZE_STEP = 16  # pixels; sizes are multiples of it

USUAL_LIMIT = 100  # proposals and detections an image

PASSES = 60  # over the training images, where time permits
MIN_ITERATIONS = 500
MAX_ITERATIONS = {"cpu": 4000, "cuda": 20000}
CPU_SECONDS = 690  # of training and evaluation
EVALUATION_SHARE = 0.2  # of the time, for evaluations during training
MAX_EVALUATIONS = 10

# Names of classes that a mirror turns into others: single characters, and words for sides.
SIDE_WORDS = re.compile(r"(?:^|[^a-z])(left|right|clockwise|arrow)(?:[^a-z]|$)", re.I)


TILE_SIDE_STEP = 64  # pixels
AUGMENTED_PASSES = 10  # from which an image is seen so often that it is varied


class Choice(NamedTuple):
    """
    Attributes:
        name: of what is chosen, for the table that is printed.
        values: {key of the config: value}.
        reason: one sentence.
    """

    name: str
    values: dict[str, object]
    reason: str


class DataFigures(NamedTuple):
    """What is chosen from.

    Attributes:
        num_train: training images.
        sizes: (n, 2), height and width of each image of all splits in pixels.
        sides: (m,), square root of the area of each object's box in pixels of its image.
        owners: (m,), the image of each object.
        most_objects: largest number of objects in an image.
        classes: names.
    """

    num_train: int
    sizes: np.ndarray
    sides: np.ndarray
    owners: np.ndarray
    most_objects: int
    classes: Sequence[str]


class Speed(NamedTuple):
    """Measured times in seconds: of a training iteration, and of the detection in an image."""

    iteration: float
    image: float


def choose_input_size(figures: DataFigures, device: str) -> Choice:
    """``INPUT.MIN_SIZE_*`` and ``MAX_SIZE_*``, such that most objects have `OBJECT_SIDE` pixels.

    Images are enlarged to at most twice their size, and the short side has the limit of the device
    in `MAX_SHORT_SIDE`.

    Args:
        figures: of the data; with at least one object.
        device: "cpu" or "cuda".
    """
    short = figures.sizes.min(axis=1)
    usual = float(np.median(short))
    small = float(np.quantile(figures.sides / short[figures.owners], SMALL_SHARE))
    wanted = OBJECT_SIDE / small
    limits = {
        "": max(wanted, min(usual, MIN_SHORT_SIDE)),
        "twice the size of the images": 2 * usual,
        f"the limit on {device.upper()}": float(MAX_SHORT_SIDE[device]),
    }
    bound, side = min(limits.items(), key=lambda item: item[1])
    side = max(SIZE_STEP, round(side / SIZE_STEP) * SIZE_STEP)
    aspect = float(np.quantile(figures.sizes.max(axis=1) / short, 0.9))
    long = math.ceil(side * min(max(aspect, 4 / 3), 2.5) / SIZE_STEP) * SIZE_STEP
    reason = (
        f"a tenth of the objects are smaller than {small * usual:.0f} pixels of an image with a "
        f"short side of {usual:.0f}, and have {small * side:.0f} pixels at this size"
    )
    if bound:
        reason += f"; {OBJECT_SIDE} would need {wanted:.0f}, but {bound} is {limits[bound]:.0f}"
    values = {
        "INPUT.MIN_SIZE_TRAIN": (side,),
        "INPUT.MAX_SIZE_TRAIN": long,
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": long,
    }
    return Choice("input size", values, reason)


def choose_tiles(figures: DataFigures, device: str) -> Choice | None:
    """``MODEL.HYPERNET.TILES`` for large images of tiny objects, else None.

    These are images in which a tenth of the objects have less than half of `OBJECT_SIDE` at the
    device's limit of the input size, and that are at least twice as large. In tiles these objects
    have `OBJECT_SIDE`.
    """
    short = figures.sizes.min(axis=1)
    usual = float(np.median(short))
    limit = MAX_SHORT_SIDE[device]
    small = float(np.quantile(figures.sides / short[figures.owners], SMALL_SHARE)) * usual
    if usual < 2 * limit or small / usual * limit >= OBJECT_SIDE / 2:
        return None
    side = max(1, round(limit * small / OBJECT_SIDE / TILE_SIDE_STEP)) * TILE_SIDE_STEP
    large = float(np.quantile(figures.sides, 1 - SMALL_SHARE))
    overlap = min(side // 2, max(side // 8, math.ceil(large / SIZE_STEP) * SIZE_STEP))
    values = {
        "MODEL.HYPERNET.TILES.SIZE": side,
        "MODEL.HYPERNET.TILES.TRAIN_SIZE": side,
        "MODEL.HYPERNET.TILES.OVERLAP": overlap,
    }
    reason = (
        f"a tenth of the objects are smaller than {small:.0f} pixels, and would have "
        f"{small / usual * limit:.0f} of a whole image's {limit}; in tiles they have {OBJECT_SIDE}"
    )
    return Choice("tiles", values, reason)


def choose_training(passes: float) -> list[Choice]:
    """Keys of ``MODEL.HYPERNET.TRAIN`` and ``AUGMENT``.

    Args:
        passes: over the training images.
    """
    node = "MODEL.HYPERNET"
    best = {f"{node}.TRAIN.BEST_CHECKPOINT": True, f"{node}.TRAIN.VALIDATION_LOSS": True}
    choices = [Choice("checkpoint", best, "the weights with the best AP on the validation split")]
    if passes >= AUGMENTED_PASSES:
        colors = {f"{node}.AUGMENT.{key}": 0.2 for key in ("BRIGHTNESS", "CONTRAST", "SATURATION")}
        values = {f"{node}.AUGMENT.SCALE": [0.8, 1.25], **colors}
        reason = f"each image is seen {passes:.0f} times, in another size and other colors"
        choices.append(Choice("augmentation", values, reason))
    return choices


def choose_limits(figures: DataFigures, train_proposals: int) -> Choice:
    """Proposals and detections an image, more than `USUAL_LIMIT` for images of many objects.

    Args:
        figures: of the data.
        train_proposals: ``MODEL.RPN.POST_NMS_TOPK_TRAIN`` of the base config.
    """
    most = figures.most_objects
    proposals, detections = (
        max(USUAL_LIMIT, math.ceil(factor * most / 50) * 50) for factor in (3, 2)
    )
    values = {
        "MODEL.RPN.POST_NMS_TOPK_TEST": proposals,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": max(train_proposals, proposals),
        "TEST.DETECTIONS_PER_IMAGE": detections,
    }
    return Choice("limits an image", values, f"an image has up to {most} objects")


def choose_flip(classes: Iterable[str]) -> Choice:
    """``INPUT.RANDOM_FLIP``, "none" for classes that a mirror would turn into others."""
    sided = [
        name
        for name in classes
        if (len(name.strip()) == 1 and name.strip().isalnum()) or SIDE_WORDS.search(name)
    ]
    if sided:
        reason = f"a mirror image of {sided[0]!r} may be another class"
        return Choice("flips", {"INPUT.RANDOM_FLIP": "none"}, reason)
    reason = "no class name is a character or has a word such as 'left' in it"
    return Choice("flips", {"INPUT.RANDOM_FLIP": "horizontal"}, reason)


def choose_schedule(
    figures: DataFigures,
    device: str,
    batch: int,
    speed: Speed,
    num_evaluated: tuple[int, int],
    iterations: int | None = None,
) -> Choice:
    """``SOLVER``'s numbers of iterations and ``TEST.EVAL_PERIOD``.

    `PASSES` over the training images, on a CPU as many as fit into `CPU_SECONDS` with the
    evaluations.

    Args:
        figures: of the data.
        device: "cpu" or "cuda".
        batch: images an iteration.
        speed: measured.
        num_evaluated: numbers of images for validation and for the test.
        iterations: ``SOLVER.MAX_ITER`` if it is given; None to choose it.
    """
    # The validation loss is as long as the detection.
    validation, test = 2 * num_evaluated[0] * speed.image, num_evaluated[1] * speed.image
    given = iterations is not None
    wanted = max(MIN_ITERATIONS, math.ceil(PASSES * figures.num_train / batch))
    wanted = min(wanted, MAX_ITERATIONS[device])
    affordable = None
    if device == "cpu":
        # The last evaluation in training, and that of the best weights on both splits.
        rest = max(CPU_SECONDS - 2 * validation - test, CPU_SECONDS / 4)
        affordable = max(20, int(rest * (1 - EVALUATION_SHARE) / speed.iteration / 10) * 10)
    if not given:
        iterations = wanted if affordable is None else min(wanted, affordable)
    share = EVALUATION_SHARE / (1 - EVALUATION_SHARE)
    evaluations = int(share * iterations * speed.iteration / max(validation, 1e-6))
    evaluations = min(max(evaluations, 1), MAX_EVALUATIONS, max(1, iterations // 20))
    period = math.ceil(iterations / evaluations)
    seconds = iterations * speed.iteration + (evaluations + 1) * validation + test
    values = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": tuple(sorted({int(iterations * share) for share in (0.7, 0.9)} - {0})),
        "SOLVER.WARMUP_ITERS": min(100, iterations // 10),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
    }
    passes = iterations * batch / figures.num_train
    reason = (
        f"{passes:.1f} passes over {figures.num_train} images, {batch} at a time, about "
        f"{_minutes(seconds)} at {speed.iteration:.2g} s an iteration and {speed.image:.2g} s an "
        "image of an evaluation"
    )
    if given:
        reason += "; MAX_ITER as given"
    elif affordable is not None and affordable < wanted:
        reason += f"; {wanted} iterations would learn more, SOLVER.MAX_ITER sets them"
    return Choice("schedule", values, reason)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
