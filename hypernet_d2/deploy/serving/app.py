"""The end points of the server.

FastAPI reads the annotations of the end points, which must therefore not be strings.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal, NamedTuple

import anyio
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from ..detector import Detector
from .batches import BatchQueue, QueueFullError
from .metrics import Metrics
from .replies import REPLIES, Found
from .uploads import Limits, Upload, decode, read_uploads

__all__ = ["build_app"]

logger = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "1"}  # seconds
PARAMETERS = ("format", "score_threshold", "num_proposals")


class Job(NamedTuple):
    """A picture in the queue, and the arguments of `Detector` that its request has."""

    upload: Upload
    score_threshold: float | None
    num_proposals: int | None


class Service:
    """What the end points share."""

    def __init__(
        self, detector: Detector, limits: Limits, tile: int | None, overlap: int | None
    ) -> None:
        self.detector, self.limits, self.tile, self.overlap = detector, limits, tile, overlap
        self.open_requests = 0
        self.queue: BatchQueue  # of the event loop, once that runs
        self.metrics = Metrics(lambda: len(self.queue))

    async def reply(
        self, request: Request, style: str, threshold: float | None, num_proposals: int | None
    ) -> dict:
        """The json of a request; see `build_app` for the HTTPExceptions."""
        # Before the body is read, so that memory is limited, too.
        if self.open_requests >= 2 * self.limits.max_waiting:
            raise _busy()
        self.open_requests += 1
        read = False
        try:
            with anyio.fail_after(self.limits.seconds):
                uploads = await read_uploads(request, self.limits)
                read = True
                jobs = [Job(upload, threshold, num_proposals) for upload in uploads]
                found = await self._wait(request, self.queue.submit(jobs))
        except QueueFullError:
            raise _busy() from None
        except ClientDisconnect:
            raise HTTPException(400, "the client has closed the connection") from None
        except TimeoutError:
            seconds = f"within {self.limits.seconds:g} s"
            if read:
                raise HTTPException(503, f"not detected {seconds}", RETRY_AFTER) from None
            raise HTTPException(408, f"the body did not arrive {seconds}") from None
        finally:
            self.open_requests -= 1
        return REPLIES[style](found, self.detector.info.classes)

    @staticmethod
    async def _wait(request: Request, futures: list[asyncio.Future]) -> list[Found]:
        """The results of all futures; after an error, none of them is waited for.

        Raises:
            ClientDisconnect: nobody waits for the reply.
        """
        gone, pending = asyncio.create_task(_disconnect(request)), set(futures)
        try:
            while pending:
                done, _ = await asyncio.wait([*pending, gone], return_when=asyncio.FIRST_COMPLETED)
                if gone in done:
                    raise ClientDisconnect
                errors = list(filter(None, (future.exception() for future in done)))
                if errors:
                    raise errors[0]
                pending -= done
            return [future.result() for future in futures]
        finally:
            gone.cancel()
            for future in futures:
                future.cancel()

    def detect(self, jobs: Sequence[Job]) -> list[Found | Exception]:
        """Called by the queue, in a thread of its own.

        With one job: an exported graph takes one picture, as in a batch detectron2 pads each to the
        largest one, which changes the features.
        """
        return [self._detect_one(job) for job in jobs]

    def _detect_one(self, job: Job) -> Found | Exception:
        try:
            image = decode(job.upload)
        except HTTPException as error:
            return error
        start = time.perf_counter()
        try:
            detections = self.detector(
                image,
                score_threshold=job.score_threshold,
                num_proposals=job.num_proposals,
                tile=self.tile,
                overlap=self.overlap,
            )
        except Exception as error:
            return error
        self.metrics.detection_seconds.observe(time.perf_counter() - start)
        return Found(job.upload.name, image.shape[:2], detections)


def build_app(
    detector: Detector,
    limits: Limits | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    workers: int = 1,
) -> FastAPI:
    """The application (ASGI) that serves a detector.

    ``POST /detect`` answers json with the detections of one picture (the body) or of several (a
    form); the query may have ``format`` (``plain`` or ``coco``), ``score_threshold`` and
    ``num_proposals``. ``GET /health`` names the model, ``GET /metrics`` is for Prometheus. An error
    is json with one key, ``error``: 400, 408, 413, 415 or 422 is a mistake of the client; 429 a
    queue that is full, and 503 a picture that took too long, both with ``Retry-After``.

    Args:
        detector: it is called from several threads if ``workers`` is more than 1.
        limits: of a request; default: `Limits`.
        tile: every picture is detected in tiles of this side, see `Detector`.
        overlap: of the tiles, in pixels.
        workers: threads that decode pictures and detect in them.
    """
    info = detector.info
    service = Service(detector, limits or Limits(), tile, overlap)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.queue = BatchQueue(
            service.detect, max_waiting=service.limits.max_waiting, threads=workers
        )
        yield
        await service.queue.close()

    # Without pages: those of FastAPI load scripts from another address.
    app = FastAPI(
        title="hypernet_d2", version=info.version, lifespan=lifespan, docs_url=None, redoc_url=None
    )

    @app.post("/detect")
    async def detect(
        request: Request,
        format: Literal["plain", "coco"] = "plain",
        score_threshold: Annotated[float | None, Query(ge=info.score_threshold, le=1)] = None,
        num_proposals: Annotated[int | None, Query(ge=1, le=info.max_proposals)] = None,
    ) -> Response:
        unknown = sorted(set(request.query_params) - set(PARAMETERS))
        if unknown:
            raise HTTPException(
                422, f"unknown parameter {unknown[0][:80]!r}; known: {', '.join(PARAMETERS)}"
            )
        start = time.perf_counter()
        reply = await service.reply(request, format, score_threshold, num_proposals)
        service.metrics.request_seconds.observe(time.perf_counter() - start)
        service.metrics.requests.labels("200").inc()
        return JSONResponse(reply)

    @app.get("/health")
    async def health() -> dict:
        return {
            "status": "ok",
            "model": info.config,
            "classes": info.classes,
            "version": info.version,
            "waiting": len(service.queue),
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=Metrics.MEDIA_TYPE)

    def error_reply(status: int, message: str, headers: dict | None = None) -> JSONResponse:
        service.metrics.requests.labels(str(status)).inc()
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def on_http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return error_reply(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return error_reply(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(Exception)
    async def on_fault(_: Request, error: Exception) -> JSONResponse:
        return error_reply(500, "an error of the server, which its log describes")

    return app


async def _disconnect(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _busy() -> HTTPException:
    return HTTPException(429, "the queue is full; try again later", RETRY_AFTER)
