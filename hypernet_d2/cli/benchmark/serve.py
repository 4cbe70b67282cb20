"""Starts the server of an exported model, and sends it pictures and malformed requests.

Prints the latency of a request at 50, 95 and 99 %, requests per second, the server's memory over
the run, and the statuses of the answers. The exit status is not 0 if a picture is refused, if a
malformed request is answered by 500 or ends the server, or if SIGTERM does not stop it.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL

from .malformed import KINDS, malformed_request

PERCENTILES = (50, 95, 99)
SAMPLES = 20  # of the memory, over the run
WAIT_SECONDS = 0.5  # for the answer to a malformed request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=str(DIGITS_MODEL), metavar="FILE", help="default: the digits model")
    add("--image", type=Path, metavar="FILE", help="picture to send (default: 320 x 240 of noise)")
    add("--requests", type=int, default=1000, help="pictures to send (%(default)s)")
    add("--clients", type=int, default=4, help="requests at a time (%(default)s)")
    add("--malformed", type=int, default=1000, help="malformed requests (%(default)s)")
    add("--threads", type=int, default=1, help="of the server's onnxruntime (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result as json")


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("requests", "clients", "malformed", "threads"):
        if getattr(args, name) < (name != "malformed"):
            parser.error(f"--{name} {getattr(args, name)}: expected 1 or more")


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: the server did not answer as it must.
    """
    content = args.image.read_bytes() if args.image else noise()
    with server(args) as (process, host):
        result = send_pictures(host, content, args.requests, args.clients)
        print(
            f"{args.requests} requests by {args.clients} clients: {result['per_second']:.1f} per "
            "second; latency "
            + ", ".join(f"{1000 * result['seconds'][str(p)]:.0f} ms at {p} %" for p in PERCENTILES)
        )
        if result["memory_mb"]:
            first, *_, last = result["memory_mb"]
            print(
                f"memory of the server: {first:.0f} MB after the first pictures, {last:.0f} MB "
                f"after the last, at most {max(result['memory_mb']):.0f} MB"
            )
        result["malformed"] = send_malformed(host, content, args.malformed)
        print(f"{args.malformed} malformed requests: {result['malformed']}")
        alive = process.poll() is None and get(host, "/health")[0] == 200
        process.send_signal(signal.SIGTERM)
        result["exit_status"] = process.wait(60)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if set(result["statuses"]) != {"200"}:
        raise ValueError(f"{args.model}: expected 200 for every picture, got {result['statuses']}")
    if not alive or any(status.startswith("5") for status in result["malformed"]):
        raise ValueError(f"{args.model}: a malformed request is a fault of the server (see above)")
    if result["exit_status"] != 0:
        raise ValueError(f"the server ended with status {result['exit_status']} after SIGTERM")


def noise() -> bytes:
    """A PNG file of 320 x 240 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process of a server, and its host:port.

    Raises:
        ValueError: it does not start.
    """
    command = [sys.executable, "-m", "hypernet_d2", "serve", args.model, "--port", "0"]
    command += ["--threads", str(args.threads), "--max-waiting", str(max(32, args.clients))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r" at http://(\S+)$", line)
        if found is None:
            raise ValueError(f"{args.model}: the server did not start (see above)")
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def send_pictures(host: str, content: bytes, requests: int, clients: int) -> dict:
    """Send a picture ``requests`` times over ``clients`` connections that are kept open."""
    statuses, seconds, memory = Counter(), [], []
    every = max(1, requests // SAMPLES)

    def client(numbers: range) -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        for number in numbers:
            start = time.perf_counter()
            connection.request("POST", "/detect", content, {"Content-Type": "image/png"})
            response = connection.getresponse()
            response.read()
            seconds.append(time.perf_counter() - start)
            statuses[str(response.status)] += 1
            if number % every == 0:
                memory.append(resident_mb(host))
        connection.close()

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, range(k, requests, clients)) for k in range(clients)]:
            done.result()
    total = time.perf_counter() - start
    return {
        "requests": requests,
        "clients": clients,
        "statuses": dict(statuses),
        "per_second": requests / total,
        "seconds": {str(p): float(np.percentile(seconds, p)) for p in PERCENTILES},
        "memory_mb": [value for value in memory if value is not None],
    }


def send_malformed(host: str, content: bytes, count: int) -> dict[str, int]:
    """Send requests of all kinds; {result of `send_raw`: number}."""
    rng, statuses = random.Random(0), Counter()
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        statuses[send_raw(host, malformed_request(kind, content, rng))] += 1
    return dict(sorted(statuses.items()))


def send_raw(host: str, request: bytes) -> str:
    """Send bytes, and return the status of the answer.

    It is "incomplete" if the server still waits for the rest of the request, and "closed" if it has
    closed the connection without an answer.
    """
    name, _, port = host.rpartition(":")
    with socket.create_connection((name, int(port)), timeout=60) as connection:
        try:
            connection.sendall(request)
            connection.settimeout(WAIT_SECONDS)
            answer = connection.recv(4096)
        except TimeoutError:
            return "incomplete"
        except ConnectionError:
            return "closed"
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return found[1].decode() if found else "closed"


def get(host: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def resident_mb(host: str) -> float | None:
    """Memory of the server's process in 10**6 bytes; None where it is not known."""
    found = re.search(r"^process_resident_memory_bytes (\S+)$", get(host, "/metrics")[1], re.M)
    return float(found[1]) / 1e6 if found else None
