"""Training on data of one's own: looks at the data, chooses a config, and reports at the end."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from hypernet_d2.checkpoint import OUTPUT_FILES
from hypernet_d2.engine import check_no_earlier_run, check_writable

from .choose import choose_config
from .finish import ProgressBar, finish, weights_of

__all__ = ["ProgressBar", "finish", "prepare"]


def prepare(args: argparse.Namespace) -> None:
    """Set ``args.config_file`` for ``--data`` without a config.

    It is ``OUTPUT_DIR/config.yaml`` of an earlier call where that is evaluated or resumed;
    otherwise that file is written, with values chosen for the data.

    Args:
        args: of ``train``; ``OUTPUT_DIR`` is added to its ``opts`` if it is missing.

    Raises:
        FileExistsError: ``OUTPUT_DIR`` has an earlier run, and it is not resumed.
        FileNotFoundError, ValueError: see `register_own_data`; there is no run to evaluate.
    """
    given = dict(zip(args.opts[::2], args.opts[1::2], strict=False))
    if "OUTPUT_DIR" not in given:
        given["OUTPUT_DIR"] = default_output_dir(args.data)
        args.opts = [*args.opts, "OUTPUT_DIR", given["OUTPUT_DIR"]]
    folder = given["OUTPUT_DIR"]
    config_file = os.path.join(folder, "config.yaml")
    exists = OUTPUT_FILES.isfile(config_file)
    if args.eval_only and not exists:
        raise FileNotFoundError(
            f"{config_file}: no such file; expected a trained model in OUTPUT_DIR, or --config NAME"
        )
    if not args.eval_only and not args.resume:
        check_no_earlier_run(folder)
    check_writable(folder)
    if not exists or not (args.eval_only or args.resume):
        choose_config(args, given, config_file)
    elif args.eval_only and not args.resume and "MODEL.WEIGHTS" not in given:
        args.opts = [*args.opts, "MODEL.WEIGHTS", weights_of(folder)]
    args.config_file = config_file


def default_output_dir(data: str) -> str:
    """``output/NAME`` of the data's folder."""
    path = Path(data).expanduser().resolve()
    folder = path if path.is_dir() else path.parent
    if folder.name.lower() == "annotations":
        folder = folder.parent
    return os.path.join("output", folder.name or "data")
