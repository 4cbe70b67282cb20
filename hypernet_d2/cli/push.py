"""Publishes an exported model with a model card on the Hugging Face Hub, or as a folder.

The folder has the model files, a card (README.md) that is written from the model's metadata and
from the training's config.yaml and results.json, these files, and the training's report. Python
reads it by Detector.from_pretrained("OWNER/NAME") or Detector.from_pretrained("FOLDER").
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hypernet_d2.deploy import Detector
from hypernet_d2.deploy.hub import push_to_hub, write_folder
from hypernet_d2.deploy.model_card import CardText, model_card, read_run

from .arguments import CommandParser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "exported/config.onnx --run output/my_model --license apache-2.0 --repo OWNER/NAME",
    )
    add = parser.add_argument
    add("models", nargs="+", type=Path, metavar="FILE", help="exported models, .onnx or .pt2")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repo", metavar="OWNER/NAME", help="repository of the Hub to upload to")
    where.add_argument("--output", type=Path, metavar="FOLDER", help="write a folder, no upload")
    add("--run", type=Path, metavar="DIR", help="output folder of the training")
    add("--license", required=True, help="of the weights, e.g. apache-2.0, cc-by-4.0, other")
    add("--name", help="heading of the card (default: name of the repository or folder)")
    add("--data", default="", metavar="TEXT", help="where the training data comes from")
    add("--data-license", default="", metavar="TEXT", help="of the training data")
    add("--private", action="store_true", help="of a repository that is created")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """
    Raises:
        OSError, ValueError, ImportError: a user's mistake.
    """
    args = parse_args(argv)
    target = args.repo or str(args.output)
    text = CardText(
        args.name or Path(target).name, target, args.license, args.data, args.data_license
    )
    models = {
        path.name: (Detector(path, threads=1).info, path.stat().st_size) for path in args.models
    }
    card = model_card(text, models, read_run(args.run) if args.run else None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        written = write_folder(folder, args.models, card, args.run)
        print(f"{target}: " + ", ".join(path.name for path in written))
        if args.repo:
            print(push_to_hub(folder, args.repo, private=args.private))
