#!/usr/bin/env python3
"""Writes docs/CONFIG.md, the reference of the configuration keys, from hypernet_d2/config.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = ROOT / "hypernet_d2" / "config.py", ROOT / "docs" / "CONFIG.md"
NODE = "MODEL.HYPERNET"
SECTION = re.compile(r"# ---- (.+?) -+$")
HEAD = f"""# Configuration

`hypernet_d2.add_hypernet_config(cfg)` adds the node `{NODE}`; the defaults are the paper's
settings. `hypernet_d2/config.py`, from which `python tools/config_reference.py` writes this page,
says more about each key, and lists the keys of detectron2 that HyperNet reads.
"""


class Key(NamedTuple):
    section: str
    name: str
    default: str
    meaning: str


def read_keys(source: str) -> list[Key]:
    """The keys in their order.

    Raises:
        ValueError: a key has no comment above it.
    """
    lines = source.splitlines()
    function = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "add_hypernet_config"
    )
    keys, section = [], ""
    for node in function.body:
        if not isinstance(node, ast.Assign):
            continue
        heading, comment = comment_above(lines, node.lineno)
        section = heading or section
        if isinstance(node.value, ast.Call):  # CN(), a node
            continue
        name = f"{NODE}.{ast.unparse(node.targets[0]).partition('.')[2]}"
        if not comment:
            raise ValueError(f"{SOURCE.name}: {name} has no comment; expected its meaning above it")
        keys.append(Key(section, name, ast.get_source_segment(source, node.value), comment))
    return keys


def comment_above(lines: list[str], line_number: int) -> tuple[str, str]:
    """The section that begins, or "", and the comment right above a line, counted from 1."""
    comment: list[str] = []
    section = ""
    for line in reversed(lines[: line_number - 1]):
        text = line.strip()
        match = SECTION.match(text)
        if match:
            section = match[1]
        elif text.startswith("#"):
            comment.insert(0, text.removeprefix("#").strip())
        else:
            break
    return section, " ".join(comment)


def to_markdown(keys: list[Key]) -> str:
    """A list for each node, with the first sentence about each key."""
    parts, heading = [HEAD], ""
    for key in keys:
        node, _, name = key.name.rpartition(".")
        section = f": {key.section}" if key.section else ""
        if heading != (heading := f"\n## {node}{section}\n\n"):
            parts.append(heading)
        first = key.meaning.partition(". ")[0].rstrip(".")
        parts.append(f"- `{name}` = `{key.default}`: {first}.\n")
    return "".join(parts)


def reference() -> str:
    return to_markdown(read_keys(SOURCE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
