"""Arguments that the commands of this package share."""

from __future__ import annotations

import argparse

__all__ = ["add_tile_arguments", "tile_options"]


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", type=int, metavar="PIXELS", help="detect in tiles of this side, in large images"
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help="overlap of neighboring tiles (default: a fifth of the tile)",
    )
    parser.add_argument(
        "--whole-image", action="store_true", help="with --tile: in the whole image as well"
    )


def tile_options(args: argparse.Namespace) -> dict:
    """The arguments of a call of `Detector` that `add_tile_arguments` adds."""
    return {"tile": args.tile, "overlap": args.overlap, "whole_image": args.whole_image}
