"""The HTTP server: its replies, its limits, its queue, and how it stops."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from hypernet_d2.deploy import DIGITS_MODEL, Detections, Detector
from tests.deploy.toy import INFO

for _package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(_package, reason='the server needs the extra "serve"')
testclient = pytest.importorskip("starlette.testclient", reason="the test client needs httpx2")

from hypernet_d2.deploy.serving.app import build_app  # noqa: E402
from hypernet_d2.deploy.serving.batches import BatchQueue, QueueFullError  # noqa: E402
from hypernet_d2.deploy.serving.server import run_server  # noqa: E402
from hypernet_d2.deploy.serving.uploads import Limits  # noqa: E402


class Whole:
    """Finds one object in a picture: the picture. Its score is the mean of the blue channel."""

    info = INFO

    def __init__(self):
        self.calls = []
        self.open = threading.Event()  # a call waits for it
        self.open.set()
        self.started = threading.Event()

    def __call__(self, image: np.ndarray, **options) -> Detections:
        self.calls.append(options)
        self.started.set()
        assert self.open.wait(10)
        height, width = image.shape[:2]
        if width == 13:
            raise ValueError("this model cannot be run")
        boxes = np.array([[0, 0, width, height]], np.float32)
        return Detections(boxes, np.array([image[:, :, 0].mean() / 255]), np.array([1]))


def picture(width: int = 8, height: int = 6, blue: int = 51, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (0, 0, blue)).save(stream, kind)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it has this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.fixture
def detector() -> Whole:
    return Whole()


@pytest.fixture
def serve(detector):
    """A function that starts a client of a server with limits of its own."""
    started = []

    def start(**limits) -> testclient.TestClient:
        client = testclient.TestClient(
            build_app(detector, Limits(**limits)), raise_server_exceptions=False
        )
        started.append(client.__enter__())
        return client

    yield start
    for client in started:
        client.__exit__(None, None, None)


def error_of(response) -> tuple[int, str]:
    assert set(response.json()) == {"error"}
    return response.status_code, response.json()["error"]


def test_a_body_is_one_picture(serve, detector):
    reply = serve().post("/detect?score_threshold=0.15&num_proposals=3", content=picture())
    assert reply.json() == {
        "images": [
            {
                "file_name": "",
                "width": 8,
                "height": 6,
                "detections": [{"class": "bright", "score": 0.2, "box": [0.0, 0.0, 8.0, 6.0]}],
            }
        ]
    }
    (call,) = detector.calls
    assert (call["score_threshold"], call["num_proposals"]) == (0.15, 3)


def test_a_form_is_a_batch_and_its_order_is_kept(serve):
    files = [("a", ("2.jpg", picture(blue=102, kind="JPEG"))), ("b", ("1.webp", picture(4, 3)))]
    reply = serve().post("/detect?format=coco", files=files).json()
    assert [(image["id"], image["file_name"]) for image in reply["images"]] == [
        (1, "2.jpg"),
        (2, "1.webp"),
    ]
    assert reply["categories"] == [{"id": 0, "name": "dark"}, {"id": 1, "name": "bright"}]
    assert reply["annotations"][1] == {
        "id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 4, 3], "area": 12, "score": 0.2,
        "iscrowd": 0,
    }  # fmt: skip
    assert abs(reply["annotations"][0]["score"] - 0.4) < 0.02


def test_the_reply_has_the_detections_of_the_detector():
    path = Path(__file__).parents[2] / "docs/walkthrough/1_image.jpg"
    detector = Detector(DIGITS_MODEL, threads=1)
    with testclient.TestClient(build_app(detector)) as client:
        (image,) = client.post("/detect", content=path.read_bytes()).json()["images"]
    boxes, scores, classes = detector(path)
    assert len(scores) == len(image["detections"]) > 0
    np.testing.assert_allclose([d["box"] for d in image["detections"]], boxes, atol=1e-4)
    np.testing.assert_allclose([d["score"] for d in image["detections"]], scores, atol=1e-6)
    names = [detector.info.classes[index] for index in classes]
    assert [d["class"] for d in image["detections"]] == names


REFUSED = {  # {what: (arguments of the client, status, part of the message)}
    "no picture": ({"content": b"%PDF-1.4"}, 415, "expected BMP, JPEG, PNG, TIFF, WEBP"),
    "a program": ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n"}, 415, "expected BMP"),
    "other formats": ({"content": picture(kind="GIF")}, 415, "expected BMP"),
    "json": ({"json": {"url": "file:///etc/passwd"}}, 415, "'application/json'"),
    "nothing": ({"content": b""}, 422, "the picture has no content"),
    "cut off": ({"content": picture(400, 400, kind="BMP")[:-9]}, 422, "cannot be read"),
    "a bomb": ({"content": bomb(9000, 9000)}, 413, "9000 x 9000 pixels"),
    "a larger bomb": ({"content": bomb(60_000, 60_000)}, 413, "more than 50000000 pixels"),
    "many bytes": ({"content": bytes(600_000)}, 413, "more than 500000 bytes"),
    "many chunks": ({"content": iter([bytes(1000)] * 600)}, 413, "more than 500000 bytes"),
    "a large file": ({"files": {"a": bytes(600_000)}}, 413, "more than 500000 bytes"),
    "many files": ({"files": [("a", picture())] * 4}, 400, "Maximum number of files is 3"),
    "many fields": ({"files": [(f"f{i}", (None, "")) for i in range(99)]}, 400, "fields is 16"),
    "a text field": ({"data": {"url": "http://x"}, "files": {"a": picture()}}, 422, "'url' is"),
    "no file": ({"files": {"a": (None, "text")}}, 422, "'a' is text"),
    "a damaged file": (
        {"files": [("a", picture()), ("b", ("b.png", picture()[:50]))]},
        422,
        "picture 2 of 2 ('b.png')",
    ),
    "no boundary": (
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary",
    ),
    "no form": (
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 400, "",
    ),
    "a low threshold": ({"params": {"score_threshold": 0.01}}, 422, "score_threshold: "),
    "no number": ({"params": {"score_threshold": "nan"}}, 422, "score_threshold: "),
    "many proposals": ({"params": {"num_proposals": 5}}, 422, "num_proposals: "),
    "a format": ({"params": {"format": "xml"}}, 422, "format: "),
    "a parameter": ({"params": {"tile": 1}}, 422, "unknown parameter 'tile'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_of_the_client_is_one_message(serve, detector, what):
    arguments, status, message = REFUSED[what]
    client = serve(max_bytes=500_000, max_pictures=3)
    got, text = error_of(client.post("/detect", **arguments))
    assert got == status and message in text and "\n" not in text
    assert detector.calls == [] or what == "a damaged file"
    assert client.post("/detect", content=picture()).status_code == 200


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../etc/passwd", "/%2e%2e/setup.py", "/docs"])
def test_no_file_is_readable(serve, path):
    assert error_of(serve().get(path)) == (404, "Not Found")


def test_health_and_metrics_describe_the_server(serve):
    client = serve()
    client.post("/detect", files=[("a", picture()), ("a", picture())])
    client.post("/detect", content=b"x")
    assert client.get("/health").json() == {
        "status": "ok", "model": "toy.yaml", "classes": ["dark", "bright"], "version": "0.0.0",
        "waiting": 0,
    }  # fmt: skip
    lines = client.get("/metrics").text.splitlines()
    assert 'hypernet_requests_total{status="200"} 1.0' in lines
    assert 'hypernet_requests_total{status="415"} 1.0' in lines
    assert "hypernet_detection_seconds_count 2.0" in lines
    assert "hypernet_waiting_pictures 0.0" in lines


def test_a_fault_of_the_model_is_500_and_the_server_goes_on(serve):
    client = serve()
    status, text = error_of(client.post("/detect", content=picture(width=13)))
    assert status == 500 and "log" in text and "cannot be run" not in text
    assert client.post("/detect", content=picture()).status_code == 200


def in_background(function, *args) -> threading.Thread:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread


def test_what_does_not_fit_the_queue_is_refused_with_retry_after(serve, detector):
    client, statuses = serve(max_waiting=2, max_pictures=2), []

    def post():
        statuses.append(client.post("/detect", content=picture()).status_code)

    detector.open.clear()
    threads = [in_background(post)]
    assert detector.started.wait(5)
    threads += [in_background(post), in_background(post)]
    while client.get("/health").json()["waiting"] < 2:
        time.sleep(0.01)
    refused = client.post("/detect", content=picture())
    assert error_of(refused) == (429, "the queue is full; try again later")
    assert refused.headers["retry-after"] == "1"
    detector.open.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 3


def test_a_picture_that_takes_too_long_is_503_and_its_turn_is_dropped(serve, detector):
    client = serve(seconds=0.2)
    detector.open.clear()
    slow = in_background(client.post, "/detect")
    late = client.post("/detect", content=picture())
    assert error_of(late) == (503, "not detected within 0.2 s")
    assert late.headers["retry-after"] == "1"
    second = client.post("/detect", content=picture())
    assert second.status_code == 503
    detector.open.set()
    slow.join()
    assert client.post("/detect", content=picture()).status_code == 200
    assert len(detector.calls) == 2  # that of the second one was never made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_fuzzed_bytes_are_the_clients_mistake(serve):
    client, rng = serve(), random.Random(0)
    seeds = [picture(40, 30, kind=kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")]
    seen = set()
    for number in range(150):
        content = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 12)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if number % 3 == 0:
            content = content[: rng.randrange(len(content))]
        seen.add(client.post("/detect", content=bytes(content)).status_code)
    assert seen == {200, 415, 422}


def test_the_queue_forms_batches_of_what_waits():
    async def run() -> list[list[int]]:
        batches, gate = [], threading.Event()

        def function(items: list[int]) -> list:
            batches.append(items)
            gate.wait(5)
            return [ValueError("odd") if item % 2 else item * 10 for item in items]

        queue = BatchQueue(function, max_waiting=5, max_batch=3)
        futures = queue.submit([0])
        while not batches:
            await asyncio.sleep(0.01)
        futures += queue.submit([1, 2]) + queue.submit([3, 4, 5])
        futures[3].cancel()
        with pytest.raises(QueueFullError):
            queue.submit([6])
        gate.set()
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [str(result) for result in results] == ["0", "odd", "20", "", "40", "odd"]
        await queue.close()
        return batches

    assert asyncio.run(run()) == [[0], [1, 2, 4], [5]]


def post(url: str, content: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("POST", "/detect", content)
    return connection.getresponse().status


def test_sigterm_lets_accepted_requests_finish_and_refuses_others(detector):
    detector.open.clear()
    seen = {}

    def client(url: str) -> None:
        try:
            accepted = in_background(lambda: seen.update(accepted=post(url, picture())))
            assert detector.started.wait(10)
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):
                try:
                    socket.create_connection(urlsplit(url).netloc.split(":"), 5).close()
                    time.sleep(0.02)
                except ConnectionRefusedError:
                    seen["refused"] = True
                    break
        finally:
            detector.open.set()
        accepted.join()

    threads = []
    before = signal.getsignal(signal.SIGTERM)
    run_server(
        build_app(detector), "127.0.0.1", 0, 10,
        lambda url: threads.append(in_background(client, url)),
    )  # fmt: skip
    threads[0].join()
    assert seen == {"accepted": 200, "refused": True}
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_client_that_leaves_gives_up_its_place(detector):
    detector.open.clear()

    def client(url: str) -> None:
        try:
            first = in_background(post, url, picture())
            assert detector.started.wait(10)
            second = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
            second.request("POST", "/detect", picture())
            wait_for(url, 1)
            second.close()
            time.sleep(0.2)  # for the server to see it
            detector.open.set()
            first.join()
            assert post(url, picture()) == 200
        finally:
            detector.open.set()
            os.kill(os.getpid(), signal.SIGTERM)

    def wait_for(url: str, waiting: int) -> None:
        health = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        while True:
            health.request("GET", "/health")
            if json.load(health.getresponse())["waiting"] == waiting:
                return
            time.sleep(0.02)

    run_server(build_app(detector), "127.0.0.1", 0, 10, lambda url: in_background(client, url))
    assert len(detector.calls) == 2


def test_an_address_in_use_is_named(detector):
    def listening(url: str) -> None:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {urlsplit(url).port}"):
            run_server(build_app(detector), "127.0.0.1", urlsplit(url).port, 1, lambda url: None)
        os.kill(os.getpid(), signal.SIGTERM)

    run_server(build_app(detector), "127.0.0.1", 0, 1, listening)
