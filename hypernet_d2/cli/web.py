"""A web page that shows how one or two exported models detect in a picture.

It shows the windows with the best scores, the proposals that are made from them, the detections and
the channels of the hyper feature. FILE is written by tools/export_model.py; the default is the
digits model that ships with the project. The page loads nothing from other addresses.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL, Detector, Stages, draw_detections, read_image

from .arguments import CommandParser

# Names of the tabs, and the caption of each.
VIEWS = {
    "Detections": "The detector's result: classified and refined proposals.",
    "Proposals": "The boxes that the detector classifies, before it refines them.",
    "Windows": "The windows of the regular grid that the proposals come from, in the same colors.",
    "Hyper feature": "Every channel of the feature map that all steps read, each from 0 (black) to "
    "its own maximum.",
}
NO_PICTURE = "Drop a picture on the left."
SHOWN_WIDTH = 720  # pixels; smaller pictures are enlarged before they are drawn on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "--model exported/hypernet_R_18_demo.onnx")
    parser.add_argument(
        "--model", action="append", default=[], metavar="FILE", help="exported model; at most two"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="port (%(default)s)")
    args = parser.parse_args(argv)
    if len(args.model) > 2:
        parser.error(f"--model: at most two, got {len(args.model)}")
    args.model = args.model or [str(DIGITS_MODEL)]
    return args


def enlarge(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image (H, W, 3), at least ``SHOWN_WIDTH`` wide, and the factor."""
    factor = max(1.0, SHOWN_WIDTH / image.shape[1])
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(image).resize(size)), factor


def draw_views(image: np.ndarray, stages: Stages, classes: tuple[str, ...]) -> list[np.ndarray]:
    """The pictures of ``VIEWS``, RGB, of an image (H, W, 3) uint8 RGB."""
    large, factor = enlarge(image)
    found = stages.detections
    labels = [
        f"{classes[label]} {score:.0%}"
        for label, score in zip(found.classes, found.scores, strict=True)
    ]
    ranks = np.arange(len(stages.proposals))
    unlabeled = [""] * len(ranks)
    return [
        draw_detections(large, found.boxes * factor, labels, found.classes),
        draw_detections(large, stages.proposals * factor, unlabeled, ranks),
        draw_detections(large, stages.windows * factor, unlabeled, ranks),
        tile_channels(stages.feature),
    ]


def tile_channels(feature: np.ndarray) -> np.ndarray:
    """The channels of (C, h, w) side by side, each from 0 to its own maximum; gray, as RGB."""
    count, h, w = feature.shape
    columns = round((count * (h + 2) / (w + 2)) ** 0.5) or 1  # about as wide as high
    rows = -(-count // columns)
    peak = feature.max(axis=(1, 2), keepdims=True)
    tiles = np.full((rows * columns, h + 2, w + 2), 64, np.uint8)  # a frame around each
    tiles[:count, 1:-1, 1:-1] = feature.clip(0) / np.maximum(peak, 1e-12) * 255
    sheet = tiles.reshape(rows, columns, h + 2, w + 2).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (h + 2), columns * (w + 2))
    times = -(-SHOWN_WIDTH // sheet.shape[1])  # an integer, so that cells stay squares
    sheet = sheet.repeat(times, axis=0).repeat(times, axis=1)
    return np.stack([sheet] * 3, axis=2)


def run_model(detector: Detector, path: str | None, threshold: float, num_proposals: int) -> tuple:
    """A line of text and the four pictures; the line alone where there is no readable image."""
    if path is None:
        return NO_PICTURE, *([None] * len(VIEWS))
    try:
        image = read_image(path)
        start = time.perf_counter()
        stages = detector.stages(image, score_threshold=threshold, num_proposals=num_proposals)
        seconds = time.perf_counter() - start
    except (OSError, ValueError, FloatingPointError) as error:
        # The page's server has stored the picture under its name in a folder of its own.
        return str(error).replace(path, Path(path).name), *([None] * len(VIEWS))
    text = (
        f"**Detections: {len(stages.detections.scores)}**, "
        f"proposals: {len(stages.proposals)}, time: {1000 * seconds:.0f} ms"
    )
    return text, *draw_views(image[:, :, ::-1], stages, detector.info.classes)


def build_page(detectors: list[tuple[str, Detector]]):
    """The page, a ``gradio.Blocks``, with one column for each of the named models."""
    import gradio as gr

    infos = [detector.info for _, detector in detectors]
    least = max(info.score_threshold for info in infos)
    most = min(info.max_proposals for info in infos)
    with gr.Blocks(title="HyperNet", analytics_enabled=False, fill_width=True) as page:
        gr.Markdown("## HyperNet: from windows to detections")
        with gr.Row():
            with gr.Column(scale=1):
                # The path, so that the file is read as everywhere in this package.
                image = gr.Image(
                    label="Picture", type="filepath", image_mode=None,
                    sources=["upload", "clipboard"], elem_id="picture",
                )  # fmt: skip
                threshold = gr.Slider(
                    least, 1, value=max(least, 0.5), step=0.01, label="Least score of a detection",
                    elem_id="threshold",
                )  # fmt: skip
                proposals = gr.Slider(
                    1, most, value=most, step=1, label="Number of proposals", elem_id="proposals"
                )
            with gr.Column(scale=3), gr.Row():
                for index, (name, detector) in enumerate(detectors):
                    add_model(index, name, detector, [image, threshold, proposals])
    return page


def add_model(index: int, name: str, detector: Detector, inputs: list) -> None:
    """Add the column of one model, and the events that update it."""
    import gradio as gr

    with gr.Column():
        gr.Markdown(f"### {name}\nfrom {detector.info.config}")
        outputs = [gr.Markdown(NO_PICTURE, elem_id=f"count-{index}")]
        with gr.Tabs():
            for view, caption in VIEWS.items():
                with gr.Tab(view):
                    picture = gr.Image(
                        show_label=False,
                        interactive=False,
                        format="png",
                        buttons=["download", "fullscreen"],
                    )
                    outputs.append(picture)
                    gr.Markdown(caption)
    gr.on(
        [component.change for component in inputs],
        partial(run_model, detector),
        inputs,
        outputs,
        trigger_mode="always_last",  # of the values that a slider takes while it is moved
        show_progress="hidden",
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    detectors = [(Path(path).name, Detector(path)) for path in args.model]
    # gradio reads them when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    launch(build_page(detectors), args.host, args.port)


def launch(page, host: str, port: int | None, **kwargs):
    """Serve the page, with nothing on it that a browser would fetch from another address.

    ``show_error`` shows the message where gradio itself cannot open a file that is dropped.
    """
    return page.launch(
        server_name=host, server_port=port, share=False, footer_links=[], ssr_mode=False,
        show_error=True, **kwargs,
    )  # fmt: skip
