"""Chooses a config for data of one's own, and prints each choice with its reason."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from hypernet_d2.checkpoint import OUTPUT_FILES, package_weights
from hypernet_d2.cli.arguments import find_config
from hypernet_d2.data.build import get_training_records
from hypernet_d2.data.choices import (
    Choice,
    choose_flip,
    choose_input_size,
    choose_limits,
    choose_schedule,
    choose_tiles,
    choose_training,
)
from hypernet_d2.data.windows import fit, load_boxes, suggest
from hypernet_d2.engine import setup_cfg
from hypernet_d2.engine.speed import measure_speed

from .look import check_readable, describe, figures_of, load_splits

__all__ = ["choose_config"]

PRETRAINED_CONFIG, RANDOM_CONFIG = "Real/hypernet_lite0", "Custom-Detection/hypernet_R_18"
# A detector of something else learns faster than one whose trunk alone has learned: on aquarium,
# 47 % of the objects had a proposal of IoU 0.5 after 75 iterations, against 19 %.
INITIAL_DETECTOR = "BCCD-Detection/hypernet_lite0"
WINDOW_BOXES = 500  # on which candidates of windows are compared
MAX_WINDOWS = 20000


def choose_config(args: argparse.Namespace, given: dict[str, str], config_file: str) -> None:
    """Look at the data, choose a config for it, print the choices, and write the file."""
    base = choose_base()
    name = base.values["config"]
    options = argparse.Namespace(config_file=find_config(name), opts=args.opts, data=args.data)
    cfg = setup_cfg(options)
    if not cfg.MODEL.HYPERNET.DATA.PATH:
        raise ValueError(
            f"--data {args.data}: a Python file needs a config as well, --config NAME or "
            "--config-file FILE"
        )
    records = load_splits()
    check_readable(records)
    sheet = os.path.join(cfg.OUTPUT_DIR, "data.jpg")
    print(describe(records, cfg.DATASETS.TRAIN[0], sheet))
    figures = figures_of(records, MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes)
    device = cfg.MODEL.DEVICE.partition(":")[0]

    print(f"\nChosen, each to be changed by KEY VALUE ({config_file} has all):")
    lines: list[str] = []
    add(cfg, given, base, lines)
    if tiles := choose_tiles(figures, device):
        add(cfg, given, tiles, lines)
    if side := cfg.MODEL.HYPERNET.TILES.TRAIN_SIZE:
        figures = figures._replace(sizes=np.minimum(figures.sizes, side))
    add(cfg, given, choose_input_size(figures, device), lines)
    add(cfg, given, choose_limits(figures, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN), lines)
    add(cfg, given, choose_windows(cfg), lines)
    add(cfg, given, choose_flip(figures.classes), lines)
    speed = measure_speed(cfg)
    figures = figures._replace(num_train=len(get_training_records(cfg)))  # of tiles, if any
    counts = tuple(len(records.get(role, ())) for role in ("val", "test"))
    iterations = cfg.SOLVER.MAX_ITER if "SOLVER.MAX_ITER" in given else None
    batch = cfg.SOLVER.IMS_PER_BATCH
    schedule = choose_schedule(figures, device, batch, speed, counts, iterations)
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        del schedule.values["SOLVER.STEPS"]
    add(cfg, given, schedule, lines)
    for choice in choose_training(cfg.SOLVER.MAX_ITER * batch / figures.num_train):
        add(cfg, given, choice, lines)
    for path, text in ((config_file, cfg.dump()), ("choices.txt", "\n".join(lines) + "\n")):
        with OUTPUT_FILES.open(os.path.join(cfg.OUTPUT_DIR, os.path.basename(path)), "w") as file:
            file.write(text)


def add(cfg: CfgNode, given: dict[str, str], choice: Choice, lines: list[str]) -> None:
    """Set the values of a choice that the user has not given, and print it."""
    chosen = {key: value for key, value in choice.values.items() if key not in given}
    kept = {key.rpartition(".")[2]: given[key] for key in choice.values if key in given}
    cfg.merge_from_list([x for key, value in chosen.items() if "." in key for x in (key, value)])
    values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
    text = f"{values}: {choice.reason}" if chosen else choice.reason * (not choice.values)
    if kept:
        as_given = ", ".join(f"{key} {value}" for key, value in kept.items())
        text += f"{'; ' if text else ''}{as_given} as given"
    lines.append(f"- {choice.name}: {text}")
    print(lines[-1], flush=True)


def choose_base() -> Choice:
    """The config that the choices are added to, and the weights that training starts from."""
    if find_spec("timm"):
        reason = (
            "training starts from a detector of blood cells, whose trunk has learned from ImageNet"
        )
        values = {
            "config": PRETRAINED_CONFIG,
            "MODEL.WEIGHTS": package_weights(INITIAL_DETECTOR),
            "SOLVER.BASE_LR": 0.01,
        }
        return Choice("base", values, reason)
    reason = (
        "trained from random weights; a detector that was trained before would learn faster, "
        'pip install "hypernet-d2[pretrained]"'
    )
    return Choice("base", {"config": RANDOM_CONFIG}, reason)


def choose_windows(cfg: CfgNode) -> Choice:
    """Sizes and aspect ratios of the windows, for the input size of the config."""
    keys = cfg.MODEL.HYPERNET.PROPOSALS
    images = load_boxes(cfg, cfg.DATASETS.TRAIN[0])
    now = fit(cfg, images, list(keys.SIZES), list(keys.ASPECT_RATIOS))
    best = suggest(cfg, images, WINDOW_BOXES, MAX_WINDOWS)
    iou = cfg.MODEL.RPN.IOU_THRESHOLDS[-1]
    if now.recall(iou) >= best.recall(iou):
        reason = f"those of the base config have IoU {iou:g} or more for {now.recall(iou):.1%} of "
        reason += f"the objects, the best others {best.recall(iou):.1%}"
        return Choice("windows", {}, reason)
    values = {
        "MODEL.HYPERNET.PROPOSALS.SIZES": best.sizes,
        "MODEL.HYPERNET.PROPOSALS.ASPECT_RATIOS": best.ratios,
    }
    reason = (
        f"{best.num_windows} windows, with IoU {iou:g} or more for {best.recall(iou):.1%} of the "
        f"objects; those of the base config are {now.num_windows}, for {now.recall(iou):.1%}"
    )
    return Choice("windows", values, reason)
