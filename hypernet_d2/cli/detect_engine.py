"""Runs ``hypernet_d2.cli.detect``, or with ``--engine ray`` ``hypernet_d2.cli.detect_ray``.

The latter works without detectron2, which the former imports.
"""

from __future__ import annotations

import argparse

from hypernet_d2_cli import import_command

ENGINES = {"detectron2": ".detect", "ray": ".detect_ray"}


def main(argv: list[str] | None = None) -> int | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", default="detectron2")
    args, rest = parser.parse_known_args(argv)
    if args.engine not in ENGINES:
        raise ValueError(f"--engine {args.engine}: expected {' or '.join(ENGINES)}")
    return import_command(f"{__package__}{ENGINES[args.engine]}")(rest)
