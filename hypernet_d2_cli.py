"""The command ``hypernet-d2``, and how each command of the project reports a user's mistake.

This module is not part of the package ``hypernet_d2``, because importing the package loads PyTorch
and detectron2, which takes seconds: here the arguments are looked at first, so that ``hypernet-d2
--help`` answers at once, and an error of these imports is reported as any other.

``train_net.py`` and the files of ``demo/`` and ``tools/`` use it as follows::

    from hypernet_d2_cli import run

    if __name__ == "__main__":
        sys.exit(run("hypernet_d2.cli.train"))

The module that is named has a function ``main(argv: list[str]) -> int | None``, which raises its
errors; `run` alone turns them into one line on stderr and an exit status.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import logging
import re
import sys
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import NoReturn

__all__ = ["COMMANDS", "OneLineErrorParser", "main", "run"]

# {command: (module, arguments put before the user's, description)}
COMMANDS: dict[str, tuple[str, list[str], str]] = {
    "train": ("hypernet_d2.cli.train", [], "train a model and evaluate it"),
    "eval": ("hypernet_d2.cli.train", ["--eval-only"], "evaluate a trained model"),
    "detect": (
        "hypernet_d2.cli.detect_engine",
        [],
        "detect in images and videos, and draw the result",
    ),
    "export": ("hypernet_d2.cli.export", [], "write a trained model as one file to deploy"),
    "suggest-windows": (
        "hypernet_d2.cli.suggest_windows",
        [],
        "choose window sizes and aspect ratios for a data set",
    ),
    "inspect-data": (
        "hypernet_d2.cli.inspect_data",
        [],
        "draw a data set, list suspicious boxes, check its images",
    ),
    "tiles": (
        "hypernet_d2.cli.tiles",
        [],
        "write the training tiles of a data set as images with a COCO json",
    ),
    "report": ("hypernet_d2.cli.report", [], "write a report on a trained model, with pictures"),
    "compare": ("hypernet_d2.cli.compare", [], "write a report on several trained models"),
    "benchmark": ("hypernet_d2.cli.benchmark", [], "measure time and memory of models"),
    "contact-sheet": (
        "hypernet_d2.cli.contact_sheet",
        [],
        "draw ground truth beside detections on one sheet",
    ),
    "walkthrough": (
        "hypernet_d2.cli.walkthrough",
        [],
        "draw each stage of the model for one image",
    ),
    "convert-weights": (
        "hypernet_d2.cli.convert_torchvision_weights",
        [],
        "convert ImageNet weights of torchvision",
    ),
    "web": (
        "hypernet_d2.cli.web",
        [],
        "serve a web page that shows a data set, detections and errors",
    ),
    "push": ("hypernet_d2.cli.push", [], "publish an exported model with a model card"),
    "serve": ("hypernet_d2.cli.serve", [], "serve an exported model over HTTP"),
}

# What a wrong argument, config, file or data set raises. AssertionError is detectron2's choice.
USER_ERRORS = (
    ValueError,
    KeyError,
    OSError,
    ImportError,
    FloatingPointError,
    AssertionError,
)

TRACEBACK = "Traceback (most recent call last):\n"

# Printed when detectron2 is imported. The package hides it, too, but the processes of a distributed
# training import detectron2 before the package, and this module before both.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
# It warns that a function was renamed, whenever detectron2's ROIPooler runs.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class OneLineErrorParser(argparse.ArgumentParser):
    """An ArgumentParser that reports wrong arguments as `run` reports other mistakes."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"hypernet_d2: error: {message} (see {self.prog} --help)\n")


def run(command: str | Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run a command and return the exit status.

    A user's mistake is one line on stderr and exit status 2. ``--debug``, anywhere among the
    arguments, shows the traceback instead. An interrupt from the keyboard has status 130.

    Args:
        command: name of the module whose ``main`` runs, or the function.
        argv: arguments without the program's name (default: those of the process).
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        function = import_command(command) if isinstance(command, str) else command
        return function(argv) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = None if debug else user_message(error)
        if message is None:
            raise
        print(f"hypernet_d2: error: {message}", file=sys.stderr)
        return 2


def import_command(module: str) -> Callable[[list[str]], int | None]:
    """The ``main`` of a command's module.

    Raises:
        ImportError: the one of ``hypernet_d2._detectron2`` if detectron2 cannot be imported.
    """
    try:
        return import_module(module).main
    except Exception:
        import_module("hypernet_d2._detectron2")
        raise


def user_message(error: Exception) -> str | None:
    """The message of a user's mistake as one line; None for any other error."""
    if type(error).__name__ == "ProcessRaisedException":  # of torch.multiprocessing
        kind, message = last_exception(str(error))
    elif isinstance(error, OSError) and error.filename and error.strerror:
        kind, message = type(error), f"{error.filename}: {error.strerror}"
    else:
        # str() of a KeyError is the repr of its message.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        kind, message = type(error), str(text)
    if kind is None or not issubclass(kind, USER_ERRORS):
        return None
    if TRACEBACK in message:  # from a worker of a data loader
        message = last_exception(message)[1]
    # Without a sentence these two are a fault of the program.
    if issubclass(kind, (AssertionError, KeyError)) and " " not in message:
        return None
    return " ".join(message.split()) or kind.__name__


def last_exception(text: str) -> tuple[type[BaseException] | None, str]:
    """Type and message of the exception that the last traceback in a text reports.

    The type is None if it is not a built-in one.
    """
    frames = text.rpartition(TRACEBACK)[2]
    head = re.search(r"^(\S+?)(?:: |$)", frames, re.MULTILINE)  # frames are indented
    kind = getattr(builtins, head[1], None) if head else None
    message = frames[head.end() :].strip() if head else ""
    if kind is KeyError:
        message = str(ast.literal_eval(message))  # a traceback has the repr of its message
    return kind if isinstance(kind, type) else None, message


def main(argv: list[str] | None = None, prog: str = "hypernet-d2") -> int:
    """Run ``hypernet-d2 COMMAND ...`` and return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = OneLineErrorParser(
        prog=prog,
        description="HyperNet and hypercolumns in detectron2: train, evaluate, detect, export.",
        epilog=f"'{prog} COMMAND --help' describes a command and shows an example. "
        "Each takes --debug, which shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"hypernet_d2 {version()}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser
    )
    for name, (_, _, description) in COMMANDS.items():
        commands.add_parser(name, help=description)
    words = [word for word in argv if word != "--debug"]
    name = parser.parse_args(words[:1]).command
    module, before, _ = COMMANDS[name]
    sys.argv[0] = f"{prog} {name}"  # the program's name in the command's own --help
    return run(module, [*before, *words[1:], *(["--debug"] if "--debug" in argv else [])])


def version() -> str:
    try:
        return metadata.version("hypernet_d2")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
