"""The content of a report, and how it is written as one HTML file and as Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from hypernet_d2.utils.files import atomic_write

__all__ = ["Bullets", "Picture", "Section", "Table", "Text", "write_page"]

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 0 20px 60px; }
h1 { font-size: 26px; margin: 28px 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px;
  border-bottom: 1px solid #d5dae0; padding-bottom: 4px; }
nav a { margin-right: 14px; white-space: nowrap; } a { color: #0059a8; }
p { max-width: 820px; margin: 8px 0; } li { max-width: 820px; margin: 6px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 12px 0; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px; border-bottom: 1px solid #e3e7eb; text-align: right; }
th { background: #f3f5f7; text-align: right; } th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: nowrap; }
figure { margin: 14px 0 22px; } figcaption { color: #57606a; font-size: 14px; max-width: 980px; }
img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column is on the left, the others on the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """
    Attributes:
        name: file name with suffix .png or .jpg, distinct in the report.
        content: of the file.
        caption: text below the picture.
    """

    name: str
    content: bytes
    caption: str = ""


Block = Text | Bullets | Table | Picture


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


def write_page(folder: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write ``report.html`` with its pictures within, and ``report.md`` with theirs in ``report``.

    Returns:
        The path of ``report.html``.
    """
    pictures = folder / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in pictures.iterdir():  # of an earlier report
        if old.suffix in (".png", ".jpg"):
            old.unlink()
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                (pictures / block.name).write_bytes(block.content)
    for name, text in (
        ("report.md", to_markdown(title, sections)),
        ("report.html", to_html(title, sections)),
    ):
        with atomic_write(folder / name, "wb") as file:
            file.write(text.encode("utf-8"))
    return folder / "report.html"


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One file that needs no other."""
    links = " ".join(
        f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections)
    )
    body = "".join(
        f'<h2 id="s{i}">{html.escape(section.title)}</h2>\n'
        + "".join(_block_to_html(block) + "\n" for block in section.blocks)
        for i, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
    )


def _block_to_html(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Bullets):
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Table):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in block.rows
        )
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    kind = "png" if block.name.endswith(".png") else "jpeg"
    data = base64.b64encode(block.content).decode("ascii")
    caption = html.escape(block.caption)
    return (
        f'<figure><img alt="{caption or html.escape(block.name)}" loading="lazy" '
        f'src="data:image/{kind};base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Markdown whose pictures are files in the folder ``report``."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += map(_block_to_markdown, section.blocks)
    return "\n\n".join(parts) + "\n"


def _block_to_markdown(block: Block) -> str:
    if isinstance(block, Text):
        return _plain(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_plain(item)}" for item in block.items)
    if isinstance(block, Table):
        rows = [[_plain(cell) for cell in row] for row in block.rows]
        align = ["left", *["right"] * (len(block.header) - 1)]
        header = [_plain(cell) for cell in block.header]
        return tabulate(rows, header, tablefmt="github", disable_numparse=True, colalign=align)
    caption = _plain(block.caption)
    picture = f"![{caption}](report/{block.name})"
    return f"{picture}\n\n{caption}" if caption else picture


def _plain(text: str) -> str:
    """Text without the characters that Markdown takes for its own, and on one line."""
    text = re.sub(r"[\\`*\[\]<>|#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return " ".join(text.split())
