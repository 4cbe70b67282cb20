"""Draws each stage of HyperNet for one image, from the trunk's maps to the detections.

Without a config it takes the model that `make demo` trains, and without an image the first of the
config's test set. index.md in --output shows the pictures, with the section of the paper and the
shapes of the tensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from hypernet_d2.data import load_dataset
from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.modeling import HyperBackbone, HyperNetProposals

from ..arguments import CommandParser, add_config_arguments, find_config
from ..contact_sheet import draw_detections, draw_ground_truth
from . import stages
from .stages import Stage
from .tracing import trace

DEMO_CONFIG = "Digits-Detection/hypernet_R_18_demo"
DEMO_WEIGHTS = "output/demo/model_final.pth"
DPI = 100


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        f"--config {DEMO_CONFIG} --output output/walk MODEL.WEIGHTS output/digits/model_final.pth",
    )
    add = parser.add_argument
    add_config_arguments(parser, required=False)
    add("--image", type=Path, help="default: the first of the config's DATASETS.TEST")
    add("--output", required=True, type=Path, help="folder for the pictures and index.md")
    add("--threshold", type=float, default=0.5, help="minimum score of a detection (default: 0.5)")
    add("--format", choices=("png", "jpg"), default="png", help="of the pictures (default: png)")
    add_data_argument(parser)
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: expected a number from 0 to 1")
    if args.image and not args.image.is_file():
        parser.error(f"--image {args.image}: no such file")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output}: is a file; expected a folder")
    if args.config_file is None:
        args.config_file = find_config(DEMO_CONFIG)
        if "MODEL.WEIGHTS" not in args.opts:
            if not Path(DEMO_WEIGHTS).is_file():
                parser.error(
                    f"{DEMO_WEIGHTS} is missing: `make demo` trains it; or name another model: "
                    "--config NAME ... MODEL.WEIGHTS FILE"
                )
            args.opts += ["MODEL.WEIGHTS", DEMO_WEIGHTS]
    return args


def load(args: argparse.Namespace) -> Predictor:
    """
    Raises:
        ValueError: the config is not of a HyperNet.
    """
    cfg = setup_cfg(args)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.threshold
    cfg.MODEL.HYPERNET.TILES.SIZE = 0  # the stages are those of the whole image
    predictor = Predictor(cfg)
    model = predictor.model
    for key, part, expected in (
        ("MODEL.BACKBONE.NAME", model.backbone, HyperBackbone),
        ("MODEL.PROPOSAL_GENERATOR.NAME", model.proposal_generator, HyperNetProposals),
    ):
        if not isinstance(part, expected):
            raise ValueError(
                f"{args.config_file}: {key} builds a {type(part).__name__}; expected a "
                f"{expected.__name__}, because the stages are those of HyperNet"
            )
    return predictor


def find_image(args: argparse.Namespace, cfg: CfgNode) -> tuple[Path, dict | None]:
    """The image, and its record in the test set, or None if it is not in the set."""
    name = cfg.DATASETS.TEST[0]
    records = load_dataset(name) if args.image is None or name in DatasetCatalog else []
    if args.image is None:
        return Path(records[0]["file_name"]), records[0]
    same = (r for r in records if Path(r["file_name"]).resolve() == args.image.resolve())
    return args.image, next(same, None)


def draw_results(
    predictor: Predictor, image: np.ndarray, record: dict | None
) -> dict[str, np.ndarray]:
    """{title: picture} of the detections, preceded by the ground truth if there is a record."""
    drawn, count = draw_detections(image, predictor)
    results = {f"detections: {count}": drawn}
    if record is None:
        return results
    metadata = MetadataCatalog.get(predictor.cfg.DATASETS.TEST[0])
    truth = draw_ground_truth(image, metadata, record)
    return {f"ground truth: {len(record['annotations'])}": truth, **results}


def walk(predictor: Predictor, image: np.ndarray, record: dict | None) -> list[Stage]:
    """All stages for an image (H, W, 3), BGR, with its record in the data set, if it has one."""
    seen = trace(predictor, image)
    results = draw_results(predictor, image[:, :, ::-1], record)
    return [
        stages.show_overview(predictor, seen, results),
        stages.show_image(predictor, seen, image.shape[:2]),
        stages.show_trunk(predictor, seen),
        stages.show_hyper_feature(predictor, seen),
        stages.show_windows(predictor, seen),
        stages.show_objectness(predictor, seen),
        stages.show_proposals(predictor, seen),
        stages.show_regions(predictor, seen),
        stages.show_detections(predictor, seen, results),
        stages.show_hypercolumns(predictor, seen),
    ]


def write(walked: list[Stage], title: str, folder: Path, suffix: str) -> Path:
    """Write the pictures and index.md, and return the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {title}", ""]
    for number, stage in enumerate(walked):
        file = f"{number}_{stage.name}.{suffix}"
        heading = f"{number}. {stage.title}" if number else stage.title
        stage.figure.suptitle(heading, fontsize=12)
        stage.figure.savefig(folder / file, dpi=DPI, bbox_inches="tight", pad_inches=0.08)
        lines += [f"## {heading}", "", f"![{stage.title}]({file})", ""]
        lines += [f"Section {stage.section}. {stage.text}", ""]
    index = folder / "index.md"
    index.write_text("\n".join(lines), encoding="utf-8")
    return index


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    predictor = load(args)
    path, record = find_image(args, predictor.cfg)
    walked = walk(predictor, read_named(path), record)
    title = f"{Path(args.config_file).stem} on {path.name}, stage by stage"
    print(write(walked, title, args.output, args.format))
