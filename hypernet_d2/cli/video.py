"""Reading and writing of videos with OpenCV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

__all__ = [
    "CODECS",
    "VIDEOS",
    "frame_rate",
    "open_video",
    "open_video_writer",
    "read_frames",
    "show_frame",
]

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CODECS = {"mp4v": ".mp4", "avc1": ".mp4", "MJPG": ".avi", "VP80": ".webm"}
_DEFAULT_RATE = 30.0  # frames per second of a source that does not say


def open_video(source: Path | int) -> cv2.VideoCapture:
    """A reader of a file or of the camera of that number; it may fail to open.

    A video that a phone has marked as rotated is read upright.
    """
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # not the default since OpenCV 4.11
    return capture


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames per second; 30 for a source that does not say."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if rate > 0 else _DEFAULT_RATE


def read_frames(capture: cv2.VideoCapture) -> Iterator[tuple[np.ndarray, float]]:
    """Frames, (H, W, 3), BGR, and their times in seconds, until the first that cannot be read.

    Each time is greater than the one before; where the source does not say so, by the frame rate.
    """
    seconds = -math.inf
    while True:
        success, frame = capture.read()
        if not success:
            return
        stated = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        seconds = stated if stated > seconds else seconds + 1 / frame_rate(capture)
        yield frame, seconds


def open_video_writer(
    file: Path, codec: str, capture: cv2.VideoCapture, size: tuple[int, int]
) -> cv2.VideoWriter:
    """A writer of frames of ``size`` (width, height), at the rate of ``capture``.

    Raises:
        ValueError: this build of OpenCV cannot write the codec.
    """
    fourcc = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(file), fourcc, frame_rate(capture), size)
    if not writer.isOpened():
        raise ValueError(
            f"{file}: this build of OpenCV ({cv2.__version__}) cannot write the codec {codec!r}; "
            f"try another one: --codec {' or '.join(c for c in CODECS if c != codec)}"
        )
    return writer


def show_frame(picture: np.ndarray) -> bool:
    """Show a picture (H, W, 3), BGR, in a window; return False once Esc or q is pressed.

    opencv-python-headless has no windows: nothing is shown, and the result is True.
    """
    try:
        cv2.imshow("hypernet_d2", picture)
    except cv2.error:
        return True
    return cv2.waitKey(1) not in (27, ord("q"))
