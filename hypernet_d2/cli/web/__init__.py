"""Serves a web page: a data set with a model's detections and errors, and a tab to drop pictures.

The model is an exported file, OUTPUT_DIR of a training, or a config with MODEL.WEIGHTS. The data
set is that of the training's DATASETS.TEST, or the one that --data, --dataset or --images names;
its detections are those that the evaluation has written, or else are made at the start. The default
is the digits model that ships with the project. The page loads nothing from other addresses.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from pathlib import Path

from hypernet_d2.cli.arguments import CommandParser, add_config_arguments
from hypernet_d2.deploy import DIGITS_MODEL

from .models import ExportedModel, TrainedModel, load_model

__all__ = ["main", "parse_args"]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "--model output/digits")
    add = parser.add_argument
    add(
        "--model",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="exported model or OUTPUT_DIR of a training; at most two models",
    )
    add_config_arguments(parser, required=False)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--dataset", metavar="NAME", help="registered set to look through")
    source.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to look through, without ground truth"
    )
    add("--data", metavar="PATH", help="your data, as for the command train")
    add(
        "--num-images",
        type=int,
        default=200,
        help="images to detect in where no evaluation has written detections (default: 200)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=7860, help="port (%(default)s)")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE ..., as in train_net.py")
    args = parser.parse_args(argv)
    if len(args.model) + bool(args.config_file) > 2:
        parser.error(f"--model: at most two models, got {len(args.model) + bool(args.config_file)}")
    if args.num_images < 1:
        parser.error(f"--num-images {args.num_images}: expected 1 or more")
    if not 1 <= args.port <= 65535:
        parser.error(f"--port {args.port}: expected 1 to 65535")
    if not args.model and not args.config_file:
        args.model = [DIGITS_MODEL]
    return args


def check_port(host: str, port: int) -> None:
    """
    Raises:
        ValueError: nothing can listen there.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: {error.strerror}; is another page running there?"
        ) from error


def load_models(args: argparse.Namespace) -> list[ExportedModel | TrainedModel]:
    """The models of the command line, with distinct names."""
    models = [load_model(path.expanduser(), args) for path in args.model]
    if args.config_file:
        from hypernet_d2.engine import setup_cfg

        models.append(TrainedModel(setup_cfg(args), Path(args.config_file).stem))
    for i, model in enumerate(models):
        if model.name in [other.name for other in models[:i]]:
            model.name = f"{model.name} ({i + 1})"
    return models


def make_explorers(args: argparse.Namespace, models: list[ExportedModel | TrainedModel]) -> dict:
    """{model's name: (explorer, note)}; empty where there is no data set to show."""
    trained = [model for model in models if isinstance(model, TrainedModel)]
    if not (args.images or args.dataset or args.data or trained):
        return {}  # an exported model needs no detectron2
    from hypernet_d2.engine import register_data

    from .explorer import Explorer
    from .picture_set import choose_set

    # A training's config, which is loaded, has registered --data or the data that it names.
    known = tuple(trained[0].cfg.DATASETS.TEST) if trained else register_data(args.data).test
    pictures = choose_set(args, known)
    explorers = {}
    for model in models if pictures else ():
        data, note = None, "Detections of the evaluation."
        if isinstance(model, TrainedModel) and model.folder:
            data = pictures.read_detections(model.folder)
        if data is None:
            data, note = pictures.detect(model, args.num_images)
        explorers[model.name] = (Explorer(data, pictures.labeled), note)
    return explorers


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_port(args.host, args.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with tempfile.TemporaryDirectory(prefix="hypernet_d2_web_") as folder:
        # gradio reads these when it is imported. Its own folder is shared by all of its servers of
        # all users, each of which serves what is in it.
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ImportError("the page needs Gradio: pip install 'hypernet-d2[web]'") from error
        from .page import build_page

        models = load_models(args)
        launch(build_page(models, make_explorers(args, models)), args.host, args.port)


def launch(page, host: str, port: int | None, **kwargs):
    """Serve the page, with nothing on it that a browser would fetch from another address.

    The server gives out the pictures that the page has drawn or got, and no other file:
    ``allowed_paths`` stays empty. ``show_error`` shows the message where gradio itself cannot open
    a file that is dropped.
    """
    return page.launch(
        server_name=host, server_port=port, share=False, footer_links=[], ssr_mode=False,
        show_error=True, **kwargs,
    )  # fmt: skip
