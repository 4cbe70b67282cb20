"""Times detectors on one image, split by part, in turns in one process.

The weights are random. So that the RoI heads have the work of a trained detector, random boxes are
added up to POST_NMS_TOPK_TEST proposals (without measuring that time), and the class scores are
scaled so that some pass SCORE_THRESH_TEST.

Parts: preprocess; trunk; feature (hyper feature or feature pyramid); proposals; detection (boxes);
mask; keypoint; postprocess. Memory is what a call allocates in addition to the weights.
"""

import argparse
from collections import defaultdict

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import nn

from hypernet_d2.cli.cost import count_flops, count_parameters
from hypernet_d2.engine import Trainer

from .models import Clock, Contender, add_arguments, check_arguments, measure, report

__all__ = ["add_arguments", "check_arguments", "run"]

SIZE = (600, 1000)
# Standard deviation of the class logits. One or two classes per region then pass the stock
# threshold of 0.05, for 3 classes or 80; with the initial weights all or none pass.
LOGITS_STD = 3.0
HEADS = {"mask": ("mask_pooler", "mask_head"), "keypoint": ("keypoint_pooler", "keypoint_head")}


def run(args: argparse.Namespace) -> None:
    height, width = args.size or SIZE
    batch = args.batch or 1
    torch.manual_seed(0)
    images = [torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(batch)]
    device = torch.device(args.contenders[0].cfg.MODEL.DEVICE)
    detectors = {c.name: TimedDetector(c, images, Clock(device)) for c in args.contenders}
    figures = measure({name: d.detect for name, d in detectors.items()}, args, device)
    rows = []
    for contender in args.contenders:
        detector = detectors[contender.name]
        rows.append(
            {
                "name": contender.name,
                "config": contender.words[0],
                "options": [*args.opts, *contender.words[1:]],
                **figures[contender.name],
                **detector.counts,
                "parameters_m": count_parameters(detector.model) / 1e6,
                "flops_g": count_flops(detector.model, images[0]) / 1e9,
            }
        )
    report("inference", rows, {"size": [height, width], "batch": batch}, args)


class TimedDetector:
    """A detector with hooks that record when its submodules begin and end.

    Attributes:
        counts: of the last call, the means per image of the proposals that the RoI heads receive,
            of the random ones among them, and of the detections.
    """

    def __init__(self, contender: Contender, images: list[torch.Tensor], clock: Clock):
        torch.manual_seed(0)
        self.model = Trainer.build_model(contender.cfg).eval()
        self.inputs = [{"image": image} for image in images]
        self.counts: dict[str, float] = {}
        self._clock = clock
        self._spans: dict[str, list[tuple]] = defaultdict(list)
        self._number = contender.cfg.MODEL.RPN.POST_NMS_TOPK_TEST
        self._watch_all()
        for layer in self.model.roi_heads.modules():
            if isinstance(layer, FastRCNNOutputLayers):
                _scale_scores(layer)

    def _watch_all(self) -> None:
        backbone, heads = self.model.backbone, self.model.roi_heads
        self._watch("backbone", backbone)
        for name in ("trunk", "bottom_up"):  # of a HyperBackbone and an FPN
            if hasattr(backbone, name):
                self._watch("trunk", getattr(backbone, name))
        self._watch("proposals", self.model.proposal_generator)
        self.model.proposal_generator.register_forward_hook(self._fill_up)
        self._watch("regions", heads)
        for part, modules in HEADS.items():
            for name in modules:
                if isinstance(getattr(heads, name, None), nn.Module):
                    self._watch(part, getattr(heads, name))

    def _watch(self, part: str, module: nn.Module) -> None:
        starts = []
        module.register_forward_pre_hook(lambda *_: starts.append(self._clock.mark()))

        def note(*_) -> None:
            self._spans[part].append((starts.pop(), self._clock.mark()))

        module.register_forward_hook(note)

    def _fill_up(self, module: nn.Module, inputs: tuple, output: tuple) -> tuple:
        proposals, losses = output
        start = self._clock.mark()
        full = [_filled_up(one, self._number) for one in proposals]
        self._spans["filling up"].append((start, self._clock.mark()))
        self.counts["proposals"] = sum(map(len, full)) / len(full)
        filled = self.counts["proposals"] - sum(map(len, proposals)) / len(full)
        self.counts["proposals_filled_in"] = filled
        return full, losses

    @torch.no_grad()
    def detect(self) -> dict[str, float]:
        """Detect once; return {part: seconds}."""
        self._spans.clear()
        start = self._clock.mark()
        outputs = self.model(self.inputs)
        end = self._clock.mark()
        self.counts["detections"] = sum(len(o["instances"]) for o in outputs) / len(outputs)
        return self._seconds(start, end)

    def _seconds(self, start, end) -> dict[str, float]:
        between = self._clock.seconds
        sums = {part: sum(between(*s) for s in spans) for part, spans in self._spans.items()}
        heads = {part: sums[part] for part in HEADS if part in sums}
        parts = {
            "total": between(start, end) - sums["filling up"],
            "preprocess": between(start, self._spans["backbone"][0][0]),
            "trunk": sums.get("trunk", sums["backbone"]),
        }
        if "trunk" in sums:
            parts["feature"] = sums["backbone"] - sums["trunk"]
        parts["proposals"] = sums["proposals"]
        parts["detection"] = sums["regions"] - sum(heads.values())
        return {**parts, **heads, "postprocess": between(self._spans["regions"][-1][1], end)}


def _filled_up(proposals: Instances, number: int) -> Instances:
    missing = max(number - len(proposals), 0)
    height, width = proposals.image_size
    device = proposals.objectness_logits.device
    corners = torch.rand(2, missing, 2, device=device)
    corners = corners * torch.tensor([width, height], device=device)
    boxes = torch.cat([corners.amin(dim=0), corners.amax(dim=0)], dim=1)
    extra = Instances((height, width))
    extra.proposal_boxes = Boxes(boxes)
    extra.objectness_logits = proposals.objectness_logits.new_zeros(missing)
    return Instances.cat([proposals, extra])


def _scale_scores(layer: FastRCNNOutputLayers) -> None:
    """Scale the layer of the class logits in its first call, to a deviation of `LOGITS_STD`."""

    def scale(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        handle.remove()
        factor = LOGITS_STD / float(output.std())
        module.weight.data *= factor
        module.bias.data *= factor
        return output * factor

    handle = layer.cls_score.register_forward_hook(scale)
