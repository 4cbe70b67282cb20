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
    "VideoWriter",
    "ends_early",
    "frame_rate",
    "open_video",
    "read_frames",
    "show_frame",
]

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CODECS = {"mp4v": ".mp4", "avc1": ".mp4", "MJPG": ".avi", "VP80": ".webm"}
_DEFAULT_RATE = 30.0  # frames per second of a source that does not say
_MAX_RATE = 300.0  # frames per second; above it is the resolution of the container's clock
_MAX_GAP = 60.0  # seconds between two frames; a longer gap is a fault of the times


def open_video(source: Path | int) -> cv2.VideoCapture:
    """A reader of a file or of the camera of that number; it may fail to open.

    A video that a phone has marked as rotated is read upright.
    """
    capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # not the default since OpenCV 4.11
    return capture


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames per second; 30 for a source that does not say, or states its clock's instead."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate <= _MAX_RATE else _DEFAULT_RATE


def ends_early(capture: cv2.VideoCapture, times: tuple[float, float], count: int) -> bool:
    """Whether a file lacks frames at its end.

    OpenCV's number of frames is computed from the duration where the container does not state it,
    so that times are compared, and not numbers.

    Args:
        capture: of the file, from which all frames have been read.
        times: of the first and the last frame, in seconds.
        count: number of frames, at least 1.
    """
    rate, expected = (capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
    if rate <= 0 or count >= expected - 1:  # or both are unknown
        return False
    first, last = times
    interval = (last - first) / (count - 1) if count > 1 else 1 / rate
    return last - first + 2 * interval < expected / rate


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


class VideoWriter:
    """Writes pictures at their times, in a video of constant frame rate.

    A picture is repeated until the next one is due, so that a source of variable frame rate, such
    as a phone, a screen recorder or a slow camera, keeps its speed. None is left out.
    """

    def __init__(self, file: Path, codec: str, rate: float, size: tuple[int, int]):
        """
        Args:
            file: to write.
            codec: one of `CODECS`.
            rate: frames per second.
            size: (width, height); pictures of another size are resized.

        Raises:
            ValueError: this build of OpenCV cannot write the codec.
        """
        self._writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*codec), rate, size)
        if not self._writer.isOpened():
            raise ValueError(
                f"{file}: this build of OpenCV ({cv2.__version__}) cannot write the codec "
                f"{codec!r}; try another one: "
                f"--codec {' or '.join(c for c in CODECS if c != codec)}"
            )
        self._rate, self._size = rate, size
        self._start, self._count, self._last = 0.0, 0, None

    def write(self, picture: np.ndarray, seconds: float) -> None:
        """Write a picture (H, W, 3), BGR, that is shown from a time on."""
        if picture.shape[1::-1] != self._size:  # OpenCV would leave it out
            picture = cv2.resize(picture, self._size)
        if self._last is None:
            self._start = seconds
        due = round((seconds - self._start) * self._rate)
        repeated = min(due - self._count, int(_MAX_GAP * self._rate))
        for _ in range(repeated):
            self._writer.write(self._last)
        self._writer.write(picture)
        self._count += max(repeated, 0) + 1
        self._last = picture

    def release(self) -> None:
        """Complete the file."""
        self._writer.release()


def show_frame(picture: np.ndarray) -> bool:
    """Show a picture (H, W, 3), BGR, in a window; return False once Esc or q is pressed.

    opencv-python-headless has no windows: nothing is shown, and the result is True.
    """
    try:
        cv2.imshow("hypernet_d2", picture)
    except cv2.error:
        return True
    return cv2.waitKey(1) not in (27, ord("q"))
