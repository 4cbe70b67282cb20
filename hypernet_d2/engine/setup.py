"""From command-line arguments to a config."""

from __future__ import annotations

import argparse
import logging
import runpy
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from hypernet_d2.config import add_hypernet_config, default_device

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
    """Run the Python file that registers the user's data sets; None has none to register.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if file is None:
        return
    if not Path(file).is_file():
        raise FileNotFoundError(f"--data {file}: no such file; expected a Python file")
    runpy.run_path(file)


def check_keys_are_unique(file: str) -> None:
    """
    Raises:
        ValueError: a mapping in the yaml file has a key twice; the lines are named.
    """

    def check(node: yaml.Node) -> None:
        lines: dict[str, int] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(
                    f"{file}: {key.value!r} stands in line {lines[key.value]} and again in line "
                    f"{line}, where it would replace the first; expected one of them with all keys"
                )
            lines[key.value] = line
            check(value)

    if Path(file).is_file():  # else the config's own loader says what is wrong
        check(yaml.compose(Path(file).read_text(encoding="utf-8")))


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of ``args.config_file`` with ``args.opts`` merged in, not frozen.

    Where ``args`` has ``data``, `register_data` runs it first. In training with several processes
    each of them calls this, so each has the data sets that the file registers.

    detectron2's default device is "cuda"; on a machine without a GPU the config gets "cpu".

    Raises:
        FileNotFoundError: if the config file or the data file is not there.
        KeyError: if the file names a key that does not exist.
        ValueError: if the file has a key twice in one place, an option names a key that does not
            exist, the options are not pairs, or a value has the wrong type.
    """
    register_data(getattr(args, "data", None))
    cfg = get_cfg()
    add_hypernet_config(cfg)
    if args.config_file:
        check_keys_are_unique(args.config_file)
        cfg.merge_from_file(args.config_file)
    opts = list(args.opts or [])
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE; got {len(opts)} words: {opts}")
    try:
        cfg.merge_from_list(opts)
    except AssertionError as error:  # what yacs raises for an unknown key
        raise ValueError(f"unknown configuration key among the options: {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and default_device() == "cpu":
        logger.warning("MODEL.DEVICE is %r, but no GPU is usable: 'cpu' is used", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    return cfg
