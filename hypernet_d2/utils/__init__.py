"""Drawing, and pickles without code; named as in detectron2."""

from .. import _detectron2  # noqa: F401
