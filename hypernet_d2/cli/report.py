"""Writes a report on a trained model: figures, plots, errors by kind, the worst pictures.

It reads what a training or an evaluation leaves in its output folder, and writes report.html (one
file), report.md and score_thresholds.json there. Nothing is trained or evaluated again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hypernet_d2.engine import add_data_argument, setup_cfg
from hypernet_d2.evaluation.report import write_report

from .arguments import CommandParser


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(__doc__, "output/digits")
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the training or evaluation")
    parser.add_argument(
        "--dataset", help="name of the evaluated set (default: the first of DATASETS.TEST)"
    )
    parser.add_argument(
        "--num-worst", type=int, default=20, help="number of the worst pictures (default: 20)"
    )
    add_data_argument(parser)
    args = parser.parse_args(argv)
    if args.num_worst < 0:
        parser.error(f"--num-worst {args.num_worst}: expected 0 or more")
    if not args.output_dir.is_dir():
        parser.error(f"{args.output_dir}: no such folder, expected OUTPUT_DIR of a training")
    # Registers --data, or the data that the config names.
    setup_cfg(
        argparse.Namespace(
            config_file=str(args.output_dir / "config.yaml"), data=args.data, opts=[]
        )
    )
    print(write_report(args.output_dir, args.dataset, num_worst=args.num_worst))
