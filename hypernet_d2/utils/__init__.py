"""Drawing; named as in detectron2."""
