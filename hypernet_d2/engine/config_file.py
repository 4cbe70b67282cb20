"""Checks of yaml config files and of their keys, with errors that name file, line and nearest key.

detectron2 keeps the last of two values of one key, and names an unknown key without the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from hypernet_d2.utils.files import did_you_mean, similar_files

__all__ = ["check_config_file", "check_option_keys"]

BASE_KEY = "_BASE_"  # fvcore's key for the files that a config extends
MERGE_KEY = "<<"  # of yaml


def check_config_file(path: str, cfg: CfgNode, including: tuple[str, ...] = ()) -> None:
    """Check a config file and the files of its ``_BASE_``.

    Args:
        path: of the file, local or with a prefix that detectron2's PathManager knows.
        cfg: a config with every key that is allowed.
        including: the files whose ``_BASE_`` leads to this one.

    Raises:
        FileNotFoundError: the file does not exist; with the most similar name in its folder.
        ValueError: the file is not yaml in UTF-8 with a mapping of keys, a key stands twice in
            one mapping or does not exist, or the file is its own ``_BASE_``.
    """
    if path in including:
        raise ValueError(f"{path}: it is its own {BASE_KEY}, by {' and '.join(including)}")
    if not PathManager.isfile(path):
        source = f" ({BASE_KEY} of {including[-1]})" if including else ""
        raise FileNotFoundError(f"no config file {path!r}{source}{similar_files(path)}")
    root = _parse(path)
    version = next((value.value for key, value in root.value if key.value == "VERSION"), None)
    # detectron2 itself renames the keys of configs of version 1.
    _check_mapping(root, path, cfg if version != "1" else None)
    for key, value in root.value:
        if key.value == BASE_KEY:
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in bases:
                check_config_file(_resolve(base.value, path), cfg, (*including, path))


def check_option_keys(keys: Iterable[str], cfg: CfgNode) -> None:
    """Check the keys of options KEY VALUE.

    Raises:
        ValueError: naming the key that does not exist, and the nearest one.
    """
    for key in keys:
        node: object = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                if cfg.key_is_deprecated(key) or cfg.key_is_renamed(key):
                    break
                raise ValueError(f"unknown configuration key {key!r}{_nearest(key, cfg)}")
            node = node[part]


def _parse(path: str) -> yaml.MappingNode:
    try:
        with PathManager.open(path, "rb") as file:
            root = yaml.compose(file.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text, which a config file has to be: {error}"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid yaml: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path}: no configuration keys, expected lines such as 'SEED: 1'")
    return root


def _check_mapping(
    node: yaml.MappingNode, path: str, cfg: CfgNode | None, prefix: str = ""
) -> None:
    """Check the keys of a mapping; ``cfg`` is the whole config, None for keys of any name."""
    lines: dict[str, int] = {}
    known = None if cfg is None else _get(cfg, prefix)
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:
            raise ValueError(
                f"{path}: {key.value!r} stands in line {lines[key.value]} and again in line "
                f"{line}, where it would replace the first; expected one of them with all keys"
            )
        lines[key.value] = line
        name = f"{prefix}.{key.value}" if prefix else key.value
        if isinstance(known, CfgNode) and key.value not in (BASE_KEY, MERGE_KEY):
            renamed = cfg.key_is_deprecated(name) or cfg.key_is_renamed(name)
            if key.value not in known and not renamed and not known.is_new_allowed():
                raise ValueError(
                    f"{path}, line {line}: unknown configuration key {name!r}{_nearest(name, cfg)}"
                )
        if isinstance(value, yaml.MappingNode):
            _check_mapping(value, path, cfg, name)


def _get(cfg: CfgNode, name: str) -> object:
    """The value of a dotted key; None if it does not exist."""
    node: object = cfg
    for part in name.split(".") if name else ():
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node


def _nearest(name: str, cfg: CfgNode) -> str:
    """A hint with the key that the unknown one was probably meant to be."""
    names = list(_all_keys(cfg))
    leaf = name.rpartition(".")[2]
    same_leaf = [known for known in names if known.rpartition(".")[2] == leaf]
    return did_you_mean(name, same_leaf) or did_you_mean(name, names)


def _all_keys(cfg: CfgNode, prefix: str = "") -> Iterable[str]:
    for key, value in cfg.items():
        name = f"{prefix}.{key}" if prefix else key
        yield name
        if isinstance(value, CfgNode):
            yield from _all_keys(value, name)


def _resolve(base: str, path: str) -> str:
    """The path of a ``_BASE_``, as fvcore resolves it: relative to the file that names it."""
    if base.startswith("~"):
        base = os.path.expanduser(base)
    if base.startswith(("/", "https://", "http://")):
        return base
    return os.path.join(os.path.dirname(path), base)
