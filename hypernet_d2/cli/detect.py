"""Detects in images, folders, videos or from a webcam, and draws the result.

--show selects what is drawn: detections, proposals (colored by objectness) or features (the three
principal components of the backbone's maps as red, green and blue; the colors of two pictures are
not comparable). Pictures and videos are written to --output under the names of the inputs. A file
that cannot be read is reported and skipped; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import glob
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import cv2
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, register_data, setup_cfg
from hypernet_d2.utils.images import IMAGE_SUFFIXES

from .arguments import CommandParser, add_config_arguments
from .coco_writer import CocoWriter, coco_writer
from .tracking import LOW_SCORE, Tracker, check_trackers
from .video import (
    CODECS,
    VIDEOS,
    VideoWriter,
    ends_early,
    frame_rate,
    open_video,
    read_frames,
    show_frame,
)
from .views import VIEWS, Viewer, side_by_side

JPEG_QUALITY = 95

logger = logging.getLogger("hypernet_d2.demo")


class UnreadableError(ValueError):
    """An input that is skipped."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--config Digits-Detection/hypernet_R_18_demo "
        "--input '~/.cache/hypernet_d2/digits/val-*/00000?.png' --output output/found "
        "--opts MODEL.WEIGHTS output/digits/model_final.pth",
    )
    add = parser.add_argument
    add_config_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", help="images, videos, folders of them, or patterns such as 'a/*.jpg'"
    )
    source.add_argument("--webcam", type=int, nargs="?", const=0, help="a camera (default: 0)")
    add("--output", required=True, type=Path, help="folder for pictures and videos")
    add("--show", choices=VIEWS, default="detections", help="default: detections")
    add("--threshold", type=float, default=0.5, help="minimum score of a detection (default: 0.5)")
    add("--num-proposals", type=int, default=100, help="maximum of proposals (default: 100)")
    add("--tile", type=int, metavar="SIZE", help="detect in tiles of this side, in large images")
    add(
        "--tile-overlap",
        type=int,
        metavar="PIXELS",
        help="overlap of neighboring tiles (default: a fifth of the tile)",
    )
    add(
        "--compare",
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="a second model, drawn on the right; --opts and --data apply to both",
    )
    add("--track", action="store_true", help="give the objects of a video identities")
    add("--json", type=Path, metavar="FILE", help="write the detections in COCO's format")
    add("--codec", choices=CODECS, default="mp4v", help="of the videos written (default: mp4v)")
    add_data_argument(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: expected a number from 0 to 1")
    if args.num_proposals < 1:
        parser.error(f"--num-proposals {args.num_proposals}: expected 1 or more")
    if args.json and (args.show != "detections" or args.compare):
        parser.error("--json writes one model's detections: leave out --show and --compare")
    if args.tile is None and args.tile_overlap is not None:
        parser.error("--tile-overlap needs --tile")
    if args.tile is not None and args.show != "detections":
        parser.error(f"--tile is for detections; leave out --show {args.show}")
    if args.tile is not None and args.tile < 1:
        parser.error(f"--tile {args.tile}: expected 1 or more pixels")
    if args.track and (args.show != "detections" or args.compare):
        parser.error("--track follows one model's detections: leave out --show and --compare")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output}: is a file; expected a folder")
    try:
        args.files = find_inputs(args.input or [])
    except ValueError as error:
        parser.error(str(error))
    picture = next((file for file in args.files if not is_video(file)), None)
    if args.track and picture is not None:
        parser.error(f"--track is for videos; {picture} is none")
    return args


def is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEOS


def find_inputs(inputs: list[str]) -> list[Path]:
    """The images and videos that ``--input`` names, each once, in order.

    Raises:
        ValueError: an entry is neither a file, nor a folder with images or videos, nor a pattern
            that matches a file.
    """
    found: list[Path] = []
    for word in inputs:
        path = Path(word).expanduser()
        if path.is_dir():
            files = [
                p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES + VIDEOS
            ]
        elif path.is_file():
            files = [path]
        else:
            names = sorted(glob.glob(str(path), recursive=True))
            files = [p for p in map(Path, names) if p.is_file()]
        if not files:
            what = "holds no image or video" if path.is_dir() else "no such file, folder or pattern"
            raise ValueError(f"--input {word}: {what} (known: {' '.join(IMAGE_SUFFIXES + VIDEOS)})")
        found += files
    return list(dict.fromkeys(found))


def build_viewer(args: argparse.Namespace) -> tuple[Predictor, Viewer]:
    """The first model, and the function that draws an image with it, or with both models."""
    args.data = register_data(args.data)  # once, for both models
    first = Predictor(demo_cfg(args, args.config_file))
    if not args.compare:
        return first, partial(VIEWS[args.show], first, args)
    config_file, weights = args.compare
    cfg = demo_cfg(args, config_file)
    cfg.MODEL.WEIGHTS = weights
    return first, side_by_side([(args.config_file, first), (config_file, Predictor(cfg))], args)


def demo_cfg(args: argparse.Namespace, config_file: str) -> CfgNode:
    cfg = setup_cfg(argparse.Namespace(config_file=config_file, opts=args.opts, data=args.data))
    threshold = min(args.threshold, LOW_SCORE) if args.track else args.threshold
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    tiles = cfg.MODEL.HYPERNET.TILES
    if args.show != "detections":
        tiles.SIZE = 0
    elif args.tile:
        tiles.SIZE = args.tile
        tiles.OVERLAP = args.tile // 5 if args.tile_overlap is None else args.tile_overlap
    return cfg


class OutputNames:
    """Distinct file names in a folder, none of which is an input's."""

    def __init__(self, folder: Path, inputs: list[Path]):
        self.folder = folder
        self.taken = {str(path.resolve()).lower() for path in inputs}

    def next(self, stem: str, suffix: str) -> Path:
        number = 1
        while True:
            path = self.folder / f"{stem}{'' if number == 1 else f'_{number}'}{suffix}"
            key = str(path.resolve()).lower()  # the file system may ignore case
            if key not in self.taken:
                self.taken.add(key)
                return path
            number += 1


def run_image(path: Path, viewer: Viewer, names: OutputNames, coco: CocoWriter | None) -> None:
    """
    Raises:
        UnreadableError: the image cannot be read, or is too narrow to be resized.
    """
    try:
        image = read_named(path)
        view = viewer(image)
    except ValueError as error:
        raise UnreadableError(str(error).removeprefix(f"{path}: ")) from error
    suffix = path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
    Image.fromarray(view.picture).save(names.next(path.stem, suffix), quality=JPEG_QUALITY)
    if coco:
        coco.add(view.instances, path.as_posix())


def run_video(
    source: Path | int,
    viewer: Viewer,
    names: OutputNames,
    codec: str,
    coco: CocoWriter | None,
    new_tracker: Callable[[float], Tracker] | None = None,
) -> None:
    """Read, draw and write frame by frame; ``source`` is a file or the number of a camera.

    ``new_tracker`` makes the tracker of a video with a frame rate; None for no tracking.

    Raises:
        UnreadableError: the source cannot be opened, has no frame, or ends early.
        ValueError: OpenCV cannot write the codec.
    """
    camera = isinstance(source, int)
    name = f"webcam {source}" if camera else str(source)
    capture = open_video(source)
    tracker = new_tracker(frame_rate(capture)) if new_tracker else None
    writer, count, start = None, 0, time.perf_counter()
    first = last = 0.0  # times of frames, in seconds
    cut = False
    expected = 0 if camera else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    try:
        frames = tqdm(read_frames(capture), total=expected or None, desc=name, unit="frame")
        for frame, seconds in frames:
            if camera:  # frames are left out while one is processed
                seconds = time.perf_counter() - start
            view = viewer(frame, partial(tracker, seconds=seconds)) if tracker else viewer(frame)
            picture = cv2.cvtColor(view.picture, cv2.COLOR_RGB2BGR)
            if writer is None:
                file = names.next("webcam" if camera else source.stem, CODECS[codec])
                writer = VideoWriter(file, codec, frame_rate(capture), picture.shape[1::-1])
                first = seconds
            writer.write(picture, seconds)
            last = seconds
            if coco:
                coco.add(view.instances, name if camera else source.as_posix(), count)
            count += 1
            if camera and not show_frame(picture):
                break
        cut = bool(count) and not camera and ends_early(capture, (first, last), count)
    except KeyboardInterrupt:
        if not camera:
            raise
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if not count:
        raise UnreadableError("cannot be read as a video")
    seconds = time.perf_counter() - start
    logger.info("%s: %d frames in %.1f s, %.2f per second", name, count, seconds, count / seconds)
    if cut:
        raise UnreadableError(f"ends at frame {count} of {expected}; those before are written")


def run(args: argparse.Namespace, viewer: Viewer, coco: CocoWriter | None) -> list[str]:
    """Process all inputs; return those that could not be read, each with the reason."""
    names, failures = OutputNames(args.output, args.files), []
    new_tracker = partial(Tracker, args.threshold) if args.track else None
    sources = args.files if args.webcam is None else [args.webcam]
    for source in tqdm(sources, unit="file"):
        try:
            if isinstance(source, Path) and not is_video(source):
                run_image(source, viewer, names, coco)
            else:
                run_video(source, viewer, names, args.codec, coco, new_tracker)
        except UnreadableError as error:
            failures.append(f"{source}: {error}")
            logger.error(failures[-1])
    return failures


def main(argv: list[str] | None = None) -> int:
    """Return 1 if an input could not be read, else 0."""
    args = parse_args(argv)
    if args.track:
        check_trackers()
    setup_logger(name="hypernet_d2")
    predictor, viewer = build_viewer(args)
    args.output.mkdir(parents=True, exist_ok=True)
    with (
        logging_redirect_tqdm([logging.getLogger("hypernet_d2")]),
        coco_writer(args.json, predictor) if args.json else nullcontext() as coco,
    ):
        failures = run(args, viewer, coco)
    if failures:
        logger.error("%d of %d could not be read", len(failures), len(args.files) or 1)
    return 1 if failures else 0
