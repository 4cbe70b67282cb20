"""Serves an exported model over HTTP: POST a picture, get its detections as json.

FILE is written by tools/export_model.py. A picture is the body of POST /detect, or a field of a
form with up to --max-pictures of them: curl --data-binary @picture.jpg URL/detect, or curl -F
a=@a.jpg -F b=@b.jpg URL/detect. GET /health and /metrics (Prometheus) describe the server. SIGTERM
stops it after the requests in progress. It has neither TLS nor passwords: on a public network, put
a proxy in front of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hypernet_d2.deploy import DIGITS_MODEL, Detector
from hypernet_d2.deploy.providers import add_runtime_arguments
from hypernet_d2.utils.optional import require_packages

from .arguments import CommandParser

__all__ = ["main", "parse_args"]

PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
MOST_PIXELS = 178_956_970  # which Pillow itself refuses


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(__doc__, "exported/hypernet_R_18_demo.onnx --port 8000")
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        default=str(DIGITS_MODEL),
        metavar="FILE",
        help="exported model (default: the digits model that ships with the project)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=8000, help="port; 0: a free one (%(default)s)")
    add("--threads", type=int, help="of onnxruntime, for one picture (default: number of cores)")
    add_runtime_arguments(parser)
    add("--workers", type=int, default=1, help="pictures detected at a time (%(default)s)")
    add("--tile", type=int, metavar="PIXELS", help="detect in tiles of this side")
    add("--overlap", type=int, metavar="PIXELS", help="of tiles (default: a fifth of the tile)")
    add("--max-bytes", type=int, default=10_000_000, help="of a request's body (%(default)s)")
    add("--max-pixels", type=int, default=50_000_000, help="of a picture (%(default)s)")
    add("--max-pictures", type=int, default=16, help="of a request (%(default)s)")
    add("--max-waiting", type=int, default=32, help="pictures in the queue (%(default)s)")
    add("--timeout", type=float, default=30, help="seconds of a request (%(default)s)")
    args = parser.parse_args(argv)
    counts = ("threads", "workers", "tile", "max_bytes", "max_pixels", "max_pictures")
    parser.check_counts(args, (*counts, "max_waiting"))
    if not 0 <= args.port < 2**16:
        parser.error(f"--port {args.port}: expected 0 to 65535")
    if not args.timeout > 0:
        parser.error(f"--timeout {args.timeout}: expected a positive number of seconds")
    if args.max_pixels > MOST_PIXELS:
        parser.error(f"--max-pixels {args.max_pixels}: expected at most {MOST_PIXELS}")
    if args.max_pictures > args.max_waiting:
        parser.error(
            f"--max-pictures {args.max_pictures}: the queue holds --max-waiting {args.max_waiting}"
        )
    if args.tile is None and args.overlap is not None:
        parser.error("--overlap needs --tile")
    return args


def main(argv: list[str] | None = None) -> None:
    """Serve until a signal arrives.

    Raises:
        OSError, ValueError, ImportError: a user's mistake.
    """
    args = parse_args(argv)
    require_packages(PACKAGES, "serve", "the server")
    serve(args)


def serve(args: argparse.Namespace) -> None:
    from hypernet_d2.deploy.serving.app import build_app
    from hypernet_d2.deploy.serving.server import run_server
    from hypernet_d2.deploy.serving.uploads import Limits

    limits = Limits(
        args.max_bytes, args.max_pixels, args.max_pictures, args.max_waiting, args.timeout
    )
    detector = Detector(
        args.model, threads=args.threads, providers=args.provider, runtime=args.runtime
    )
    app = build_app(detector, limits, tile=args.tile, overlap=args.overlap, workers=args.workers)

    def listening(url: str) -> None:
        print(f"serving {Path(args.model).name} at {url}", flush=True)

    run_server(app, args.host, args.port, args.timeout, listening)
