"""Measures time and memory of HyperNet and its baselines.

"proposals" times the scoring of windows alone, "inference" whole detectors by part, "training"
training iterations, "deploy" the exported files of a trained model, "serve" the HTTP server. A
contender of the first three is "[NAME=]CONFIG [KEY VALUE ...]": a config file or its name in the
model zoo, with options of its own; NAME is the name of its row. docs/EVALUATION.md shows the
output.
"""

import importlib
import sys

from ..arguments import CommandParser

# Imported when they run, because "proposals" and "serve" do not need detectron2. Each has an
# example.
COMMANDS = {
    "proposals": "--windows 10000 30000 --json proposals.json",
    "inference": "--config Digits-Detection/hypernet_R_18 "
    "--against Digits-Detection/faster_rcnn_R_18_FPN --json inference.json",
    "training": "--config Digits-Detection/hypernet_R_18 --batch 2 --json training.json",
    "deploy": "--config Digits-Detection/hypernet_R_18_demo --size 240 320 MODEL.WEIGHTS "
    "output/digits/model_final.pth",
    "serve": "--requests 1000 --clients 4 --malformed 1000 --json serve.json",
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = CommandParser(__doc__, f"inference {COMMANDS['inference']}")
    parser.add_argument("command", choices=COMMANDS, help="each has a --help of its own")
    command = parser.parse_args(argv[:1]).command
    module = importlib.import_module(f".{command}", __package__)
    parser = CommandParser(module.__doc__, COMMANDS[command], prog=f"{parser.prog} {command}")
    module.add_arguments(parser)
    args = parser.parse_args(argv[1:])
    module.check_arguments(parser, args)
    module.run(args)
