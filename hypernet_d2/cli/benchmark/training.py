"""Times training iterations of detectors, split into forward, backward and step, in turns.

The batches are loaded by the config's train loader before the measurement, and have the same images
for all contenders. If the data set is missing or --size is given, they are generated. The learning
rate is that of the first iteration of the warm-up. Memory is what an iteration allocates beyond
weights, momentum and the gradients of the iteration before.
"""

import argparse
import itertools
import math
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from hypernet_d2.cli.cost import count_parameters
from hypernet_d2.engine import Trainer

from .models import Clock, add_arguments, check_arguments, measure, report

__all__ = ["add_arguments", "check_arguments", "run"]

BATCHES = 4  # used in turn
OBJECTS = 8  # in each generated image


def run(args: argparse.Namespace) -> None:
    iterations, rows, data = {}, [], {}
    device = torch.device(args.contenders[0].cfg.MODEL.DEVICE)
    for contender in args.contenders:
        cfg = contender.cfg
        if args.batch:
            cfg.SOLVER.IMS_PER_BATCH = args.batch
        cfg.DATALOADER.NUM_WORKERS = 0  # all contenders get the same images from one seed
        batches, data[contender.name] = batches_of(cfg, args.size)
        seed_all_rng(0)
        model = Trainer.build_model(cfg)
        iterations[contender.name] = iteration_of(model, cfg, batches, Clock(device))
        rows.append(
            {
                "name": contender.name,
                "config": contender.words[0],
                "options": [*args.opts, *contender.words[1:]],
                "parameters_m": count_parameters(model) / 1e6,
            }
        )
    if len(set(data.values())) > 1:
        raise ValueError(f"the contenders would be trained on different images: {data}")
    with EventStorage():
        figures = measure(iterations, args, device)
    rows = [{**row, **figures[row["name"]]} for row in rows]
    report("training", rows, {"images": data[args.contenders[0].name]}, args)


def batches_of(cfg: CfgNode, size: tuple[int, int] | None) -> tuple[list[list[dict]], str]:
    """Batches of the config's train loader, or generated ones, and a description of them.

    Args:
        size: (H, W) of generated images; None for those of the data set.
    """
    seed_all_rng(0)
    if size is None:
        try:
            loader = iter(Trainer.build_train_loader(cfg))
            batches = list(itertools.islice(loader, BATCHES))
            return batches, f"{cfg.SOLVER.IMS_PER_BATCH} of {' and '.join(cfg.DATASETS.TRAIN)}"
        except FileNotFoundError:
            short = cfg.INPUT.MIN_SIZE_TRAIN[0]
            size = short, min(math.ceil(short * 4 / 3), cfg.INPUT.MAX_SIZE_TRAIN)
    batches = [
        [generated_image(cfg, *size) for _ in range(cfg.SOLVER.IMS_PER_BATCH)]
        for _ in range(BATCHES)
    ]
    return batches, f"{cfg.SOLVER.IMS_PER_BATCH} generated of {size[0]} x {size[1]}"


def generated_image(cfg: CfgNode, height: int, width: int) -> dict:
    """An image of noise with random boxes, and masks and keypoints if the config has such heads."""
    extent = torch.tensor([width, height]) / 2
    corner = torch.rand(OBJECTS, 2) * extent
    boxes = torch.cat([corner, corner + (0.1 + 0.9 * torch.rand(OBJECTS, 2)) * extent], dim=1)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(cfg.MODEL.ROI_HEADS.NUM_CLASSES, (OBJECTS,))
    if cfg.MODEL.MASK_ON:
        outlines = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()]
        instances.gt_masks = PolygonMasks(outlines)
    if cfg.MODEL.KEYPOINT_ON:
        number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        within = torch.rand(OBJECTS, number, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
        visible = torch.full((OBJECTS, number, 1), 2.0)
        points = torch.cat([within + boxes[:, None, :2], visible], dim=2)
        instances.gt_keypoints = Keypoints(points.numpy())
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def iteration_of(
    model: torch.nn.Module, cfg: CfgNode, batches: list[list[dict]], clock: Clock
) -> Callable[[], dict[str, float]]:
    """A function that trains for one iteration and returns {part: seconds}."""
    optimizer = Trainer.build_optimizer(cfg, model.train())
    for group in optimizer.param_groups:
        group["lr"] *= cfg.SOLVER.WARMUP_FACTOR
    amp = cfg.SOLVER.AMP.ENABLED and clock.device.type == "cuda"
    scaler = torch.amp.GradScaler(clock.device.type, enabled=amp)
    turns = itertools.cycle(batches)

    def iterate() -> dict[str, float]:
        batch = next(turns)
        start = clock.mark()
        with torch.autocast(clock.device.type, torch.float16, enabled=amp):
            loss = sum(model(batch).values())
        forward = clock.mark()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        backward = clock.mark()
        scaler.step(optimizer)
        scaler.update()
        end = clock.mark()
        return {
            "total": clock.seconds(start, end),
            "forward": clock.seconds(start, forward),
            "backward": clock.seconds(forward, backward),
            "step": clock.seconds(backward, end),
        }

    return iterate
