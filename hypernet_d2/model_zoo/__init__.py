"""The configs of this project by name, with the same functions as ``detectron2.model_zoo``."""

from hypernet_d2 import _detectron2  # noqa: F401

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]
