"""Detects in any number of pictures with an exported model, on a pool of processes of Ray.

--input is a folder, a pattern or a picture, --output a folder, both local paths or URLs of fsspec
(s3://..., gs://...). The output gets two tables in Parquet's format: detections, a row a picture,
and failed, the pictures that cannot be read, with the reason. The same command continues a job that
was interrupted; to try failed pictures again, remove the folder failed. The exit status is 1 if a
picture failed.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from hypernet_d2.deploy import Detector
from hypernet_d2.utils.optional import require_packages

from .arguments import CommandParser

PACKAGES = ("ray", "pyarrow", "fsspec")
REPORT_SECONDS = 30
# Only the paths of the pictures are stored in it.
OBJECT_STORE_BYTES = 200_000_000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        __doc__,
        "--engine ray --model exported/hypernet_R_18_demo.onnx --input PICTURES --output found",
    )
    add = parser.add_argument
    add("--engine", choices=("ray",), default="ray", help=argparse.SUPPRESS)
    add("--model", required=True, metavar="FILE", help="exported model")
    add("--input", required=True, metavar="URL", help="folder, pattern or picture")
    add("--output", required=True, metavar="URL", help="folder")
    add("--workers", type=int, help="processes, of one CPU each (default: number of CPUs)")
    add("--address", help="of a Ray cluster, or 'auto' (default: Ray on this machine)")
    add("--threshold", type=float, help="least score of a detection (default: the model's)")
    add("--num-proposals", type=int, help="maximum of proposals (default: the model's)")
    add("--tile", type=int, metavar="SIZE", help="detect in tiles of this side")
    add("--tile-overlap", type=int, metavar="PIXELS", help="default: a fifth of the tile")
    add("--max-pixels", type=int, default=100_000_000, help="of a picture (%(default)s)")
    add("--part", type=int, default=200, help="pictures of an output file (%(default)s)")
    args = parser.parse_args(argv)
    parser.check_counts(args, ("workers", "part", "max_pixels", "tile"))
    if args.tile is None and args.tile_overlap is not None:
        parser.error("--tile-overlap needs --tile")
    return args


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status, 1 if a picture failed.

    Raises:
        OSError, ValueError, ImportError: a user's mistake.
    """
    args = parse_args(argv)
    require_packages(PACKAGES, "ray", "--engine ray")
    from hypernet_d2.deploy.pipeline import Options, detect_pictures

    options = Options(
        args.threshold, args.num_proposals, args.tile, args.tile_overlap, args.max_pixels
    )
    # A wrong model or option is an error here, before Ray starts.
    Detector(args.model, threads=1)(
        np.zeros((8, 8, 3), np.uint8),
        score_threshold=args.threshold,
        num_proposals=args.num_proposals,
        tile=args.tile,
        overlap=args.tile_overlap,
    )
    start_ray(args.address, args.workers)
    workers = args.workers or ray_cpus()
    start = last = time.monotonic()
    detected = failed = 0
    for progress in detect_pictures(
        args.model, args.input, args.output, options, workers=workers, part=args.part
    ):
        detected, failed = detected + progress.detected, failed + progress.failed
        if time.monotonic() - last > REPORT_SECONDS:
            last, count = time.monotonic(), detected + failed
            print(f"{count} pictures, {count / (last - start):.1f} a second", flush=True)
    seconds = time.monotonic() - start
    print(f"{args.output}: {detected} pictures detected in, {failed} failed, in {seconds:.1f} s")
    return 1 if failed else 0


def start_ray(address: str | None, workers: int | None) -> None:
    """Connect to a Ray cluster, or start Ray on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which Ray would send to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning says so
    import ray

    if address:
        ray.init(address, log_to_driver=False)
    else:
        ray.init(
            num_cpus=workers,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def ray_cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))
