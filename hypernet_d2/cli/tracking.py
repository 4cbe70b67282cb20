"""Identities of objects in a video, by ByteTrack (arXiv 2110.06864) of the package ``trackers``."""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torchvision.ops import nms

__all__ = ["LOW_SCORE", "Tracker", "check_trackers"]

# Detections from this score on continue an identity, such as that of an object that is half hidden;
# the paper's lower threshold.
LOW_SCORE = 0.1
SAME_OBJECT = 0.7
_INSTALL = "pip install 'hypernet-d2[track]' && pip install --no-deps 'trackers>=2.6'"


def check_trackers() -> None:
    """
    Raises:
        ImportError: ``trackers`` or a package that it needs is not installed.
    """
    try:
        import trackers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--track: no module {error.name!r}; {_INSTALL}") from error


class Tracker:
    """Gives the detections of successive frames identities.

    Boxes are matched by IoU with where the objects are expected, whatever their classes, so that an
    object keeps its identity where the detector takes it for another class in a frame. For the same
    reason, of boxes that overlap by an IoU above `SAME_OBJECT` only the best is kept, also where
    their classes differ. An object that is not detected for a second loses its identity.
    """

    def __init__(self, threshold: float, frame_rate: float):
        """
        Args:
            threshold: score from which a detection starts an identity.
            frame_rate: of the video, frames per second.
        """
        from trackers import ByteTrackTracker

        self.threshold = threshold
        self._tracker = ByteTrackTracker(
            frame_rate=frame_rate,
            track_activation_threshold=threshold,
            high_conf_det_threshold=threshold,
        )

    def __call__(self, instances: Instances, seconds: float) -> Instances:
        """
        Args:
            instances: all detections of a frame from `LOW_SCORE` on, on the CPU.
            seconds: time of the frame in the video; greater than that of the frame before.

        Returns:
            The kept ones that belong to an identity or have the score to start one, with
            ``track_ids`` (n,), int64, from 1 on. It is 0 in the first frame of an object, which the
            next frame has to confirm.
        """
        import supervision

        boxes, scores = instances.pred_boxes.tensor, instances.scores
        instances = instances[nms(boxes.float(), scores.float(), SAME_OBJECT)]
        detections = supervision.Detections(
            xyxy=instances.pred_boxes.tensor.float().numpy(),
            confidence=instances.scores.float().numpy(),
            data={"index": torch.arange(len(instances)).numpy()},
        )
        tracked = self._tracker.update(detections, timestamp=seconds)
        ids = torch.zeros(len(instances), dtype=torch.int64)
        if len(tracked):  # otherwise it may have no data
            ids[tracked.data["index"]] = torch.from_numpy(tracked.tracker_id).long() + 1
        found = Instances(instances.image_size, **instances.get_fields(), track_ids=ids)
        return found[(ids > 0) | (instances.scores >= self.threshold)]
