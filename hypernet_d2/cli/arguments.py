"""Arguments that the commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from hypernet_d2_cli import OneLineErrorParser

__all__ = ["CommandParser", "add_config_arguments", "add_config_name_argument", "find_config"]


class CommandParser(OneLineErrorParser):
    """The parser of a command, whose help has an example and --debug.

    Args:
        description: what the command does, usually its module's docstring.
        example: the arguments of a command line that works in a checkout.
        kwargs: of ``argparse.ArgumentParser``.
    """

    def __init__(self, description: str | None, example: str, **kwargs):
        kwargs.setdefault("prog", _program())
        super().__init__(
            description=description,
            epilog=f"example:\n  %(prog)s {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        # hypernet_d2_cli.run acts on it; here it is for --help.
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of an error, not its line only"
        )

    def check_counts(self, args: argparse.Namespace, names: Iterable[str]) -> None:
        """Report the first of these arguments that is given and below 1."""
        for name in names:
            value = getattr(args, name)
            if value is not None and value < 1:
                self.error(f"--{name.replace('_', '-')} {value}: expected 1 or more")


def _program() -> str:
    """How the command was called: ``python demo/demo.py`` or ``hypernet-d2 detect``."""
    return f"python {sys.argv[0]}" if sys.argv[0].endswith(".py") else sys.argv[0]


def add_config_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--config-file PATH`` and ``--config NAME``; both fill ``args.config_file``."""
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--config-file", metavar="PATH", help="config file of the model")
    add_config_name_argument(group)


def add_config_name_argument(container: argparse._ActionsContainer) -> None:
    """Add ``--config NAME`` to a parser or group that has ``--config-file``."""
    container.add_argument(
        "--config",
        dest="config_file",
        type=_config_argument,
        metavar="NAME",
        help="the same by its name in the model zoo, e.g. BCCD-Detection/hypernet_R_18",
    )


def find_config(name: str) -> str:
    """The path of a config of the zoo, with or without its ``.yaml``; that of a file as it is.

    Raises:
        ValueError: there is neither; the message has a similar name.
    """
    from hypernet_d2.model_zoo import get_config_file  # `web` works without detectron2

    if Path(name).is_file():
        return name
    return get_config_file(name if name.endswith((".yaml", ".py")) else f"{name}.yaml")


def _config_argument(name: str) -> str:
    try:
        return find_config(name)
    except ValueError as error:  # of which argparse would not show the message
        raise argparse.ArgumentTypeError(str(error)) from error
