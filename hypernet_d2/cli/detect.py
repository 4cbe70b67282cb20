"""Detects in images, folders, videos or from a webcam, and draws what it finds.

``--show`` chooses between detections, proposals (coloured by their score) and features (the three
principal components of the backbone's maps as red, green and blue; each picture has its own).
Pictures and videos go into ``--output`` under their own names. A file that cannot be read is named
and left out, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import glob
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from PIL import Image
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from hypernet_d2.data.dataset_mapper import read_named
from hypernet_d2.engine import Predictor, add_data_argument, setup_cfg
from hypernet_d2.engine.visualizer import BoxVisualizer, score_colours

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CODECS = {"mp4v": ".mp4", "avc1": ".mp4", "MJPG": ".avi", "VP80": ".webm"}
FRAMES_A_SECOND = 30.0  # of a source that does not say
JPEG_QUALITY = 95
STRIP, PAD = 30, 8  # pixels: height of a caption, and space around its text

logger = logging.getLogger("hypernet_d2.demo")


class UnreadableError(ValueError):
    """A source that is left out."""


class View(NamedTuple):
    """What is shown of one image: ``picture`` (H, W, 3, RGB, uint8) and how it is described."""

    picture: np.ndarray
    caption: str
    instances: Instances | None = None


Viewer = Callable[[np.ndarray], View]  # from (H, W, 3), BGR, uint8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, help="config of the model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", help="images, videos, folders of them, or patterns such as 'a/*.jpg'"
    )
    source.add_argument(
        "--webcam", type=int, nargs="?", const=0, help="number of a camera; 0 if left out"
    )
    add("--output", required=True, type=Path, help="folder for pictures and videos")
    add("--show", choices=SHOW, default="detections", help="default: detections")
    add("--threshold", type=float, default=0.5, help="least score of a detection (default: 0.5)")
    add("--num-proposals", type=int, default=100, help="most proposals shown (default: 100)")
    add(
        "--compare",
        nargs=2,
        metavar=("CONFIG", "WEIGHTS"),
        help="a second model, shown on the right; --opts and --data count for both",
    )
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
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output}: is a file; expected a folder")
    try:
        args.files = find_inputs(args.input or [])
    except ValueError as error:
        parser.error(str(error))
    return args


def find_inputs(inputs: list[str]) -> list[Path]:
    """The images and videos that the words of ``--input`` stand for, each once, in their order.

    Raises:
        ValueError: a word is no file, no folder that holds images or videos, and no pattern that
            fits a file.
    """
    found: list[Path] = []
    for word in inputs:
        path = Path(word).expanduser()
        if path.is_dir():
            files = [p for p in sorted(path.iterdir()) if p.suffix.lower() in IMAGES + VIDEOS]
        elif path.is_file():
            files = [path]
        else:
            names = sorted(glob.glob(str(path), recursive=True))
            files = [p for p in map(Path, names) if p.is_file()]
        if not files:
            what = "holds no image or video" if path.is_dir() else "no such file, folder or pattern"
            raise ValueError(f"--input {word}: {what} (known: {' '.join(IMAGES + VIDEOS)})")
        found += files
    return list(dict.fromkeys(found))


# What is shown


def view_detections(predictor: Predictor, image: np.ndarray, args: argparse.Namespace) -> View:
    instances = predictor(image)["instances"].to("cpu")
    visualizer = BoxVisualizer(image[:, :, ::-1], predictor.metadata)
    picture = visualizer.draw_instance_predictions(instances).get_image()
    return View(picture, f"{len(instances)} detections", instances)


def view_proposals(predictor: Predictor, image: np.ndarray, args: argparse.Namespace) -> View:
    with output_of(predictor.model.proposal_generator) as seen:
        predictor(image)
    (proposals,), _ = seen["output"]
    best = detector_postprocess(proposals[: args.num_proposals].to("cpu"), *image.shape[:2])
    scores = best.objectness_logits.sigmoid().numpy()
    visualizer = BoxVisualizer(image[:, :, ::-1], predictor.metadata)
    limits = (scores.min(initial=1.0), scores.max(initial=0.0))
    boxes = best.proposal_boxes.tensor.numpy()
    picture = visualizer.draw_proposals(boxes, scores, limits).get_image()
    return View(with_scale(picture, len(best), limits), f"{len(best)} proposals")


def view_features(predictor: Predictor, image: np.ndarray, args: argparse.Namespace) -> View:
    from hypernet_d2.layers import hypercolumn_picture

    with output_of(predictor.model.backbone) as seen:
        predictor(image)
    size = tuple(seen["inputs"][0].shape[-2:])
    content = predictor.aug.get_transform(image).apply_image(image).shape[:2]
    picture = hypercolumn_picture(seen["output"], size, content).numpy()
    picture = cv2.resize(picture, image.shape[1::-1])
    return View(picture, f"maps {', '.join(seen['output'])}")


SHOW = {
    "detections": view_detections,
    "proposals": view_proposals,
    "features": view_features,
}


@contextmanager
def output_of(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Gives a dict that gets the ``inputs`` and ``output`` of the module's next call."""
    seen: dict[str, Any] = {}
    handle = module.register_forward_hook(
        lambda _, inputs, output: seen.update(inputs=inputs, output=output)
    )
    try:
        yield seen
    finally:
        handle.remove()


def build_viewer(args: argparse.Namespace) -> tuple[Predictor, Viewer]:
    """The first model, and what shows it, or the two side by side."""
    show = SHOW[args.show]
    first = Predictor(demo_cfg(args, args.config_file))
    if not args.compare:
        return first, lambda image: show(first, image, args)
    config, weights = args.compare
    other_cfg = demo_cfg(args, config)
    other_cfg.MODEL.WEIGHTS = weights
    second = Predictor(other_cfg)

    def side_by_side(image: np.ndarray) -> View:
        halves = []
        for predictor, name in ((first, args.config_file), (second, config)):
            view = show(predictor, image, args)
            short = "/".join(Path(name).with_suffix("").parts[-2:])
            halves.append(with_caption(view.picture, f"{short}: {view.caption}"))
        gap = np.full((len(halves[0]), PAD, 3), 255, np.uint8)
        return View(np.hstack([halves[0], gap, halves[1]]), "")

    return first, side_by_side


def demo_cfg(args: argparse.Namespace, config_file: str) -> CfgNode:
    cfg = setup_cfg(argparse.Namespace(config_file=config_file, opts=args.opts, data=args.data))
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.threshold
    return cfg


def with_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """``picture`` under a strip with one line of text, made to fit its width."""
    strip = np.full((STRIP, picture.shape[1], 3), 255, np.uint8)
    put_text(strip, text, PAD, picture.shape[1] - 2 * PAD)
    return np.vstack([strip, picture])


def with_scale(picture: np.ndarray, count: int, limits: tuple[float, float]) -> np.ndarray:
    """``picture`` under a strip that tells the colours of objectness within ``limits``."""
    width = picture.shape[1]
    strip = np.full((STRIP, width, 3), 255, np.uint8)
    low, high = (f"{limit:.3f}" for limit in limits)
    left = PAD + put_text(strip, f"{count} proposals, objectness {low}", PAD, width // 2)
    right = max(int(0.85 * width), left + 1)
    colours = (255 * score_colours(np.linspace(0, 1, right - left))).astype(np.uint8)
    strip[PAD:-PAD, left:right] = colours
    put_text(strip, high, right + PAD, width - right - 2 * PAD)
    return np.vstack([strip, picture])


def put_text(strip: np.ndarray, text: str, x: int, width: int) -> int:
    """Writes ``text`` from ``x`` on, at most ``width`` pixels wide; returns where it ends."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.55
    (length, _), _ = cv2.getTextSize(text, font, size, 1)
    size *= min(1.0, max(width, 1) / length)
    (length, height), _ = cv2.getTextSize(text, font, size, 1)
    cv2.putText(strip, text, (x, (STRIP + height) // 2), font, size, (0, 0, 0), 1, cv2.LINE_AA)
    return x + length


# What is written


class CocoWriter:
    """Detections in COCO's format, written as they come, so that a long video takes no memory.

    ``annotations`` has what COCO's results have (``image_id``, ``category_id``, ``bbox`` as x, y,
    width and height in pixels, ``score``); ``images`` has ``file_name``, ``width``, ``height`` and,
    for videos, ``frame``, counted from 0. The file appears when all is written.
    """

    def __init__(self, file: Path, predictor: Predictor):
        self.file, self.part = file, file.with_name(file.name + ".part")
        metadata, num_classes = predictor.metadata, predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES
        to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {
            i: i for i in range(num_classes)
        }
        self.category_ids = {contiguous: id for id, contiguous in to_contiguous.items()}
        names = metadata.get("thing_classes", None) or [str(i) for i in range(num_classes)]
        categories = [
            {"id": id, "name": names[contiguous]} for contiguous, id in self.category_ids.items()
        ]
        self.images: list[str] = []
        self.annotations = 0
        file.parent.mkdir(parents=True, exist_ok=True)
        self.stream = self.part.open("w", encoding="utf-8")
        self.stream.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')

    def add(self, instances: Instances, file: str, frame: int | None = None) -> None:
        height, width = instances.image_size
        image_id = len(self.images) + 1
        image = {"id": image_id, "file_name": file, "width": width, "height": height}
        self.images.append(json.dumps(image if frame is None else {**image, "frame": frame}))
        for result in instances_to_coco_json(instances, image_id):
            self.stream.write(",\n" if self.annotations else "\n")
            self.annotations += 1
            result["category_id"] = self.category_ids[result["category_id"]]
            area = result["bbox"][2] * result["bbox"][3]
            self.stream.write(
                json.dumps({"id": self.annotations, **result, "area": area, "iscrowd": 0})
            )

    def close(self) -> None:
        self.stream.write('],\n"images": [\n' + ",\n".join(self.images) + "]}\n")
        self.stream.close()
        self.part.replace(self.file)


class Names:
    """Distinct file names in ``--output``, none of which is an input's."""

    def __init__(self, folder: Path, inputs: list[Path]):
        self.folder = folder
        self.taken = {str(path.resolve()).lower() for path in inputs}

    def next(self, stem: str, suffix: str) -> Path:
        number = 1
        while True:
            path = self.folder / f"{stem}{'' if number == 1 else f'_{number}'}{suffix}"
            key = str(path.resolve()).lower()  # some file systems know no capitals
            if key not in self.taken:
                self.taken.add(key)
                return path
            number += 1


def run_image(path: Path, viewer: Viewer, names: Names, coco: CocoWriter | None) -> None:
    """Raises UnreadableError where the image cannot be read."""
    try:
        image = read_named(path)
    except ValueError as error:
        raise UnreadableError(str(error).removeprefix(f"{path}: ")) from error
    view = viewer(image)
    suffix = path.suffix if path.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
    Image.fromarray(view.picture).save(names.next(path.stem, suffix), quality=JPEG_QUALITY)
    if coco:
        coco.add(view.instances, path.as_posix())


def run_video(
    source: Path | int, viewer: Viewer, names: Names, codec: str, coco: CocoWriter | None
) -> None:
    """Frame by frame, so that a video's length does not matter.

    Raises:
        UnreadableError: the source cannot be opened, gives no frame, or ends early.
        RuntimeError: OpenCV cannot write the codec.
    """
    camera = isinstance(source, int)
    name = f"webcam {source}" if camera else str(source)
    capture = cv2.VideoCapture(source if camera else str(source))
    writer, count, start = None, 0, time.perf_counter()
    stated = 0 if camera else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    try:
        for frame in tqdm(read_frames(capture), total=stated or None, desc=name, unit="frame"):
            view = viewer(frame)
            if writer is None:
                stem = "webcam" if camera else source.stem
                file = names.next(stem, CODECS[codec])
                writer = open_writer(file, codec, capture, view.picture)
            writer.write(cv2.cvtColor(view.picture, cv2.COLOR_RGB2BGR))
            if coco:
                coco.add(view.instances, name if camera else source.as_posix(), count)
            count += 1
            if camera and not show_window(view.picture):
                break
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
    logger.info("%s: %d frames in %.1f s, %.2f a second", name, count, seconds, count / seconds)
    if count < stated - 1:  # some containers round the number
        raise UnreadableError(f"ends at frame {count} of {stated}; what came before is written")


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3), BGR."""
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def open_writer(
    file: Path, codec: str, capture: cv2.VideoCapture, picture: np.ndarray
) -> cv2.VideoWriter:
    rate = capture.get(cv2.CAP_PROP_FPS)
    writer = cv2.VideoWriter(
        str(file),
        cv2.VideoWriter.fourcc(*codec),
        rate if rate > 0 else FRAMES_A_SECOND,
        picture.shape[1::-1],
    )
    if not writer.isOpened():
        raise RuntimeError(
            f"{file}: this build of OpenCV ({cv2.__version__}) cannot write the codec {codec!r}; "
            f"expected one that it has: --codec {' or '.join(c for c in CODECS if c != codec)}"
        )
    return writer


def show_window(picture: np.ndarray) -> bool:
    """Whether to go on: not after Esc or q. Without windows (opencv-python-headless) always."""
    try:
        cv2.imshow("hypernet_d2", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except cv2.error:
        return True
    return cv2.waitKey(1) not in (27, ord("q"))


def run(args: argparse.Namespace, viewer: Viewer, coco: CocoWriter | None) -> list[str]:
    """What could not be read, each with its reason."""
    names, failures = Names(args.output, args.files), []
    sources = args.files if args.webcam is None else [args.webcam]
    for source in tqdm(sources, unit="file"):
        try:
            if isinstance(source, Path) and source.suffix.lower() not in VIDEOS:
                run_image(source, viewer, names, coco)
            else:
                run_video(source, viewer, names, args.codec, coco)
        except UnreadableError as error:
            failures.append(f"{source}: {error}")
            logger.error(failures[-1])
    return failures


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    setup_logger(name="hypernet_d2")
    predictor, viewer = build_viewer(args)
    args.output.mkdir(parents=True, exist_ok=True)
    coco = CocoWriter(args.json, predictor) if args.json else None
    with logging_redirect_tqdm([logging.getLogger("hypernet_d2")]):
        failures = run(args, viewer, coco)
    if coco:
        coco.close()
    if failures:
        logger.error("%d of %d could not be read", len(failures), len(args.files) or 1)
    return 1 if failures else 0
