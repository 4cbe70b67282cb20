"""From command-line arguments to a config."""

from __future__ import annotations

import argparse
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from hypernet_d2.config import add_hypernet_config, default_device
from hypernet_d2.data.datasets.own_data import OwnData, register_own_data
from hypernet_d2.utils.files import similar_files

from .config_file import check_config_file, check_option_keys
from .made_split import find_split

__all__ = ["add_data_argument", "register_data", "setup_cfg"]

logger = logging.getLogger(__name__)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--data PATH``, for `register_data`."""
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="your data: a folder, YOLO's data.yaml, COCO's json, or a Python file that registers "
        "your data sets in detectron2's DatasetCatalog. Unless it is a Python file, it is "
        "registered as my_train, my_val and my_test, and DATASETS.TRAIN, DATASETS.TEST and "
        "MODEL.ROI_HEADS.NUM_CLASSES are set from it. The config.yaml of a training names its data",
    )


def register_data(
    path: str | OwnData | None, split: Mapping[str, Sequence[str]] | None = None
) -> OwnData:
    """Register the user's data sets, see :func:`hypernet_d2.data.register_own_data`.

    Args:
        path: of the data; what an earlier call returned, for data that is registered; or None.
        split: made earlier, see `register_own_data`.

    Returns:
        The names of the sets and of the classes. They are empty for a Python file and for None.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: see `register_own_data`; or a Python file has an error of Python, whose line is
            named.
    """
    if path is None:
        return OwnData()
    if isinstance(path, OwnData):
        return path
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(
            f"--data {path}: no such file or folder, expected a Python file or your data"
            f"{similar_files(path)}"
        )
    try:
        data = register_own_data(path, split=split)
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except (AttributeError, NameError, TypeError) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        if not lines:  # not in the user's Python file
            raise
        raise ValueError(f"{path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    if data.summary and comm.is_main_process():
        print(data.summary)  # commands set up their logging later, or not at all
    return data


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of ``args.config_file`` with ``args.opts`` merged in, not frozen.

    If ``args`` has ``data``, `register_data` registers it. Each process of a distributed training
    calls this, so that each has the data sets. Unless the data is a Python file,
    ``DATASETS.TRAIN``, ``DATASETS.TEST``, ``MODEL.ROI_HEADS.NUM_CLASSES`` and
    ``MODEL.HYPERNET.DATA.PATH`` are those of the data; ``args.opts`` may set them otherwise.
    Without ``args.data``, the data that the config names in ``MODEL.HYPERNET.DATA`` is registered;
    if that fails the reason is logged, as many commands do not need the data.

    detectron2's default device is "cuda"; without a GPU it is changed to "cpu".

    Raises:
        FileNotFoundError: the config file or the data file does not exist.
        ValueError: the config file is not valid, see :func:`check_config_file`; an option names a
            key that does not exist; the options are not pairs, or an argument such as --data
            follows them; or a value has the wrong type.
    """
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
    data = getattr(args, "data", None)
    if data and data != OwnData():
        if not isinstance(data, OwnData):
            data = register_data(data, find_split(cfg, args.config_file))
        if data.train:
            cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = data.train, data.test
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.classes)
            cfg.MODEL.HYPERNET.DATA.PATH = data.path
            cfg.merge_from_list(opts)
    elif cfg.MODEL.HYPERNET.DATA.PATH:
        _register_recorded_data(cfg, args.config_file)
    if cfg.MODEL.DEVICE.startswith("cuda") and default_device() == "cpu":
        logger.warning("MODEL.DEVICE is %r, but no GPU is usable: 'cpu' is used", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def _register_recorded_data(cfg: CfgNode, config_file: str) -> None:
    path = Path(cfg.MODEL.HYPERNET.DATA.PATH)
    try:
        if path.suffix == ".py":
            raise ValueError("a Python file, which only --data runs")
        register_own_data(path, split=find_split(cfg, config_file))
    except (ValueError, OSError) as error:
        logger.warning(
            "the data of this config (MODEL.HYPERNET.DATA.PATH %r) is not registered: %s",
            str(path),
            error,
        )
