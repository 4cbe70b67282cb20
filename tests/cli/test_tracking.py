"""Identities in videos: demo/demo.py --track, on a detector of colors in place of a model."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.detectron2

SIZE = (90, 320)  # height, width
RED, GREEN = 0, 1


class ColorDetector:
    """Detects one red (class 0) and one green (class 1) rectangle; ``scores`` are of each frame."""

    def __init__(self, scores=lambda frame: (0.9, 0.9)):
        from detectron2.config import get_cfg
        from detectron2.data import Metadata

        self.metadata, self.cfg = Metadata(thing_classes=["red", "green"]), get_cfg()
        self.cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
        self.scores, self.frame = scores, -1

    def __call__(self, image: np.ndarray) -> dict:
        from detectron2.structures import Boxes, Instances

        self.frame += 1
        blue, green, red = (image[:, :, i].astype(int) for i in range(3))
        boxes, scores, classes = [], [], []
        for label, mask in ((RED, red - green > 80), (GREEN, green - red > 80)):
            score = self.scores(self.frame)[label]
            if mask.any() and score:
                rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
                boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                scores.append(score)
                classes.append(label)
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4).float())
        instances.scores = torch.tensor(scores).reshape(-1)
        instances.pred_classes = torch.tensor(classes, dtype=torch.int64).reshape(-1)
        return {"instances": instances}


def write_crossing(path: Path, frames: int = 40, speed: int = 6, rate: float = 10) -> Path:
    """A red rectangle goes right and a green one left, in front of it."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, SIZE[::-1])
    for i in range(frames):
        image = np.full((*SIZE, 3), 120, np.uint8)
        x = 10 + speed * i
        cv2.rectangle(image, (x, 30), (x + 40, 70), (30, 30, 250), -1)
        x = 10 + speed * (frames - 1 - i)
        cv2.rectangle(image, (x, 36), (x + 40, 60), (30, 250, 30), -1)
        writer.write(image)
    writer.release()
    return path


def track(video: Path, folder: Path, detector: ColorDetector) -> list[list[dict]]:
    """The annotations of each frame that ``detect --track --json`` writes."""
    detect = importlib.import_module("hypernet_d2.cli.detect")
    views = importlib.import_module("hypernet_d2.cli.views")
    stream = io.StringIO()
    folder.mkdir()
    coco = detect.CocoWriter(stream, detector)

    def viewer(frame, track):  # without drawing, which takes most of the time
        return views.View(frame[:, :, ::-1], "", track(detector(frame)["instances"]))

    names, new_tracker = detect.OutputNames(folder, [video]), partial(detect.Tracker, 0.5)
    detect.run_video(video, viewer, names, "MJPG", coco, new_tracker)
    coco.finish()
    content = json.loads(stream.getvalue())
    frames = [[] for _ in content["images"]]
    for one in content["annotations"]:
        frames[one["image_id"] - 1].append(one)
    return frames


def identities(frames: list[list[dict]], label: int) -> list[int | None]:
    return [one["track_id"] for frame in frames for one in frame if one["category_id"] == label]


@pytest.mark.trackers
def test_objects_that_cross_keep_their_identities(tmp_path):
    frames = track(write_crossing(tmp_path / "a.avi"), tmp_path / "out", ColorDetector())
    assert [len(frame) for frame in frames] == [2] * 40
    red, green = identities(frames, RED), identities(frames, GREEN)
    assert (red[0], green[0]) == (None, None)  # to be confirmed by the second frame
    assert ({*red[1:]}, {*green[1:]}) in (({1}, {2}), ({2}, {1}))


@pytest.mark.trackers
def test_an_identity_outlasts_frames_without_detections_and_low_scores(tmp_path):
    def scores(frame):
        return 0.9 if frame < 10 else 0 if frame < 15 else 0.3 if frame < 20 else 0.9, 0

    frames = track(write_crossing(tmp_path / "a.avi"), tmp_path / "out", ColorDetector(scores))
    assert [len(frame) for frame in frames] == [1] * 10 + [0] * 5 + [1] * 25
    assert identities(frames, RED)[1:] == [1] * 34


@pytest.mark.trackers
def test_a_low_score_starts_no_identity_and_is_not_written(tmp_path):
    video = write_crossing(tmp_path / "a.avi")
    frames = track(video, tmp_path / "out", ColorDetector(lambda frame: (0.3, 0)))
    assert frames == [[] for _ in range(40)]


@pytest.mark.trackers
def test_an_object_of_two_classes_is_one(tmp_path):
    class Undecided(ColorDetector):
        def __call__(self, image):
            from detectron2.structures import Boxes, Instances

            self.frame += 1
            x = 10.0 + 6 * self.frame
            instances = Instances(image.shape[:2])
            instances.pred_boxes = Boxes(torch.tensor([[x, 30, x + 40, 70], [x, 31, x + 40, 70]]))
            instances.scores = torch.tensor([0.6, 0.7] if self.frame % 2 else [0.7, 0.6])
            instances.pred_classes = torch.tensor([RED, GREEN])
            return {"instances": instances}

    frames = track(write_crossing(tmp_path / "a.avi"), tmp_path / "out", Undecided())
    assert [len(frame) for frame in frames] == [1] * 40
    assert {one["track_id"] for frame in frames[1:] for one in frame} == {1}


@pytest.mark.trackers
def test_an_object_that_returns_after_more_than_a_second_is_another_one(tmp_path):
    detector = ColorDetector(lambda frame: (0 if 5 <= frame < 20 else 0.9, 0))
    frames = track(write_crossing(tmp_path / "a.avi", speed=1), tmp_path / "out", detector)
    assert identities(frames, RED) == [None, 1, 1, 1, 1, None, *[2] * 19]


def test_the_color_is_the_identitys(tmp_path):
    views = importlib.import_module("hypernet_d2.cli.views")
    detector, image = ColorDetector(), np.full((*SIZE, 3), 120, np.uint8)
    cv2.rectangle(image, (100, 40), (140, 70), (30, 30, 250), -1)
    drawn = []
    for numbers in ([1], [1], [2], [0]):

        def track(instances, numbers=numbers):
            instances.track_ids = torch.tensor(numbers)
            return instances

        view = views.view_detections(detector, argparse.Namespace(), image, track)
        drawn.append(view.picture)
    assert (drawn[0] == drawn[1]).all()
    first, second, none = drawn[0][55, 99], drawn[2][55, 99], drawn[3][55, 99]
    assert np.abs(first.astype(int) - second).max() > 60
    assert np.ptp(none.astype(int)) < 60 < np.ptp(first.astype(int))  # gray


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--input {picture} --track", "--track is for videos; {picture} is none"),
        ("--webcam --track --show proposals", "--track follows one model's detections"),
    ],
)
def test_what_cannot_be_tracked_is_one_line(tmp_path, capsys, words, message):
    detect = importlib.import_module("hypernet_d2.cli.detect")
    picture = tmp_path / "a.jpg"
    cv2.imwrite(str(picture), np.zeros((8, 8, 3), np.uint8))
    words = words.format(picture=picture).split()
    with pytest.raises(SystemExit):
        detect.parse_args(["--config-file", "x", "--output", str(tmp_path / "out"), *words])
    assert message.format(picture=picture) in capsys.readouterr().err


def test_the_missing_package_is_one_line(monkeypatch):
    tracking = importlib.import_module("hypernet_d2.cli.tracking")
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(ImportError, match=r"--track.*hypernet-d2\[track\].*--no-deps"):
        tracking.check_trackers()


def test_times_of_frames_increase(tmp_path):
    video = importlib.import_module("hypernet_d2.cli.video")
    capture = video.open_video(write_crossing(tmp_path / "a.avi", frames=5))
    times = [seconds for _, seconds in video.read_frames(capture)]
    assert np.allclose(np.diff(times), 0.1)
