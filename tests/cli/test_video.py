"""Reading and writing of videos: rotation, variable frame rate, sizes, missing frames."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from hypernet_d2.cli import video


def write(path: Path, times: list[float], rate: float = 10, size: tuple[int, int] = (64, 48)):
    """A video whose pictures are darker and darker."""
    writer = video.VideoWriter(path, "mp4v" if path.suffix == ".mp4" else "MJPG", rate, size)
    for i, seconds in enumerate(times):
        writer.write(np.full((*size[::-1], 3), 250 - 40 * i, np.uint8), seconds)
    writer.release()
    return path


def pictures(path: Path) -> list[int]:
    """The numbers of the pictures of `write`."""
    capture = video.open_video(path)
    return [round((250 - frame.mean()) / 40) for frame, _ in video.read_frames(capture)]


def test_constant_frame_rate_stays_as_it_is(tmp_path):
    file = write(tmp_path / "a.avi", [5.0, 5.1, 5.2, 5.3, 5.4])
    assert pictures(file) == [0, 1, 2, 3, 4]
    times = [seconds for _, seconds in video.read_frames(video.open_video(file))]
    assert np.allclose(np.diff(times), 0.1)


def test_a_picture_stays_until_the_next_one_and_none_is_left_out(tmp_path):
    times = [0, 0.03, 0.06, 0.5, 0.9]
    assert pictures(write(tmp_path / "a.avi", times)) == [0, 1, 2, 2, 2, 3, 3, 3, 3, 4]


def test_a_gap_of_hours_does_not_fill_the_disk(tmp_path):
    assert len(pictures(write(tmp_path / "a.avi", [0, 36_000.0], rate=1))) == 1 + 60 + 1


def test_pictures_of_another_size_are_written(tmp_path):
    writer = video.VideoWriter(tmp_path / "a.avi", "MJPG", 10, (64, 48))
    for i, size in enumerate([(48, 64), (30, 40), (64, 48)]):
        writer.write(np.full((*size, 3), 100, np.uint8), i / 10)
    writer.release()
    frames = [frame.shape for frame, _ in video.read_frames(video.open_video(tmp_path / "a.avi"))]
    assert frames == [(48, 64, 3)] * 3


def test_a_phones_rotated_video_is_read_upright(tmp_path):
    file = write(tmp_path / "a.mp4", [0, 0.1])
    content = bytearray(file.read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track's header
    quarter_turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    content[matrix : matrix + 36] = quarter_turn
    file.write_bytes(content)
    frame, _ = next(video.read_frames(video.open_video(file)))
    assert frame.shape == (64, 48, 3)


class Capture:
    """OpenCV's statement on a file."""

    def __init__(self, rate: float, count: float):
        self.values = {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FRAME_COUNT: count}

    def get(self, key: int) -> float:
        return self.values[key]


@pytest.mark.parametrize(
    ("rate", "expected", "times", "count", "early"),
    [
        (10, 40, (0, 3.9), 40, False),
        (10, 40, (0, 3.8), 39, False),  # off by one, as in some containers
        (10, 40, (0, 1.9), 20, True),
        (10, 40, (0, 0), 1, True),
        (30, 92, (0, 3.05), 8, False),  # variable rate: computed from the duration
        (30, 92, (0, 0.5), 8, True),
        (1000, 3067, (0, 3.05), 92, False),
        (0, 0, (0, 3), 8, False),
        (30, -1e15, (0, 3), 90, False),  # a browser's recording has no duration
    ],
)
def test_missing_frames_are_known_from_the_times(rate, expected, times, count, early):
    assert video.ends_early(Capture(rate, expected), times, count) == early


def test_the_resolution_of_a_clock_is_no_frame_rate():
    assert [video.frame_rate(Capture(rate, 0)) for rate in (25, 240, 0, 1000, 90_000)] == [
        25, 240, 30, 30, 30,
    ]  # fmt: skip
