"""From command-line arguments to a config."""

from __future__ import annotations

import argparse
import logging
import runpy
import traceback
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from hypernet_d2.config import add_hypernet_config, default_device
from hypernet_d2.utils.files import similar_files

from .config_file import check_config_file, check_option_keys

__all__ = ["add_data_argument", "register_data", "setup_cfg"]

logger = logging.getLogger(__name__)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--data FILE``, a Python file for `register_data`."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="Python file that registers your data sets in detectron2's DatasetCatalog",
    )


def register_data(file: str | None) -> None:
    """Run the Python file that registers the user's data sets, if there is one.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a Python file, or has an error of Python, whose line is named.
    """
    if file is None:
        return
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"--data {file}: no such file, expected a Python file{similar_files(file)}"
        )
    if Path(file).suffix != ".py":
        raise ValueError(f"--data {file}: expected a Python file, which registers the data sets")
    try:
        runpy.run_path(file)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except (AttributeError, NameError, TypeError) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        raise ValueError(f"{file}, line {lines[-1]}: {type(error).__name__}: {error}") from error


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of ``args.config_file`` with ``args.opts`` merged in, not frozen.

    If ``args`` has ``data``, `register_data` runs that file first. Each process of a distributed
    training calls this, so that each has the data sets.

    detectron2's default device is "cuda"; without a GPU it is changed to "cpu".

    Raises:
        FileNotFoundError: the config file or the data file does not exist.
        ValueError: the config file is not valid, see :func:`check_config_file`; an option names a
            key that does not exist; the options are not pairs, or an argument such as --data
            follows them; or a value has the wrong type.
    """
    register_data(getattr(args, "data", None))
    cfg = get_cfg()
    add_hypernet_config(cfg)
    if args.config_file:
        check_config_file(args.config_file, cfg)
        try:
            cfg.merge_from_file(args.config_file)
        except (ValueError, KeyError, AssertionError) as error:  # a value of another type
            raise ValueError(f"{args.config_file}: {error}") from error
    opts = list(args.opts or [])
    misplaced = next((word for word in opts if word.startswith("--")), None)
    if misplaced is not None:
        raise ValueError(f"{misplaced} follows KEY VALUE pairs; expected it before them")
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE; got {len(opts)} words: {opts}")
    check_option_keys(opts[::2], cfg)
    cfg.merge_from_list(opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and default_device() == "cpu":
        logger.warning("MODEL.DEVICE is %r, but no GPU is usable: 'cpu' is used", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    return cfg
