#!/usr/bin/env python3
"""Writes the tables of docs/MODEL_ZOO.md, one row for each config; or checks them.

    python tools/model_zoo_table.py             # parameters counted anew, the other cells kept
    python tools/model_zoo_table.py --flops     # FLOPs measured anew too (minutes on a CPU);
                                                # --flops R_18: only of names with R_18
    python tools/model_zoo_table.py --check     # exit status 1 if the file would change

A table stands between <!-- table FOLDER ... --> and <!-- end -->. Empty columns are left out. The
column "measured" has the AP that this project obtained; it is edited by hand and kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tabulate import tabulate

from hypernet_d2 import model_zoo
from hypernet_d2.cli.cost import count_flops, count_parameters

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "MODEL_ZOO.md"
COLUMNS = ("config", "parameters (M)", "FLOPs (G)", "published", "measured")
TABLE = re.compile(r"(<!-- table (?P<folders>.+?) -->\n)(?P<rows>.*?)(<!-- end -->)", re.DOTALL)
LINK = re.compile(r"\(\.\./configs/(.+)\.yaml\)")
# Long side of the image whose FLOPs are counted, by INPUT.MIN_SIZE_TEST.
LONG_SIDE = {600: 1000, 800: 1333, 240: 320, 320: 427}

PUBLISHED = {
    "PascalVOC-Detection/hypernet_VGG16": "76.3 mAP [1]",
    "PascalVOC-Detection/hypernet_VGG16_VOC12": "71.4 mAP on test, from 07++12 [1]",
    "PascalVOC-Detection/hypernet_SP_VGG16_VOC12": "71.3 mAP on test, from 07++12 [1]",
    "PascalVOC-Detection/faster_rcnn_VGG16": "73.2 mAP [2]",
    "PascalVOC-Detection/faster_rcnn_VGG16_VOC07": "69.9 mAP [2]",
    "PascalVOC-Detection/faster_rcnn_VGG16_VOC12": "70.4 mAP on test, from 07++12 [2]",
    "COCO-Detection/faster_rcnn_VGG16_1x": "21.9 AP, 42.7 AP50 on test-dev [2]",
}


def parameters(name: str) -> float:
    """Millions of parameters; nothing is allocated."""
    cfg = model_zoo.get_config(f"{name}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return count_parameters(build_model(cfg)) / 1e6


def flops(cfg: CfgNode) -> float:
    """Billions of multiply-adds that fvcore counts on one image of the test size."""
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    height = cfg.INPUT.MIN_SIZE_TEST
    image = torch.rand(3, height, LONG_SIDE[height]) * 255
    return count_flops(model, image) / 1e9


def measure_flops(names: list[str]) -> dict[str, str]:
    """FLOPs of each config; configs of one model share a measurement."""
    cells, done = {}, {}
    for name in names:
        cfg = model_zoo.get_config(f"{name}.yaml")
        same = f"{cfg.MODEL} {cfg.INPUT}"
        if same not in done:
            done[same] = f"{flops(cfg):.1f}"
            print(f"{name}: {done[same]} GFLOPs", flush=True)
        cells[name] = done[same]
    return cells


def read_table(table: str) -> dict[str, dict[str, str]]:
    """For each config of a table, its cells by column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    rows = [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]
    return {LINK.search(row["config"])[1]: row for row in rows}


def row(name: str, old: dict[str, str], new_flops: str | None) -> dict[str, str]:
    """The cells of a config by column; ``old`` has those of the row that it replaces."""
    return {
        "config": f"[{name}](../configs/{name}.yaml)",
        "parameters (M)": f"{parameters(name):.1f}",
        "FLOPs (G)": new_flops or old.get("FLOPs (G)", ""),
        "published": PUBLISHED.get(name, ""),
        "measured": old.get("measured", ""),
    }


def to_markdown(rows: list[dict[str, str]]) -> str:
    """A table of the columns that are not empty. The folder is named only if there are several."""
    folder, *others = {row["config"].partition("/")[0] + "/" for row in rows}
    if not others:
        rows = [row | {"config": row["config"].replace(folder, "[", 1)} for row in rows]
    columns = [column for column in COLUMNS if any(row[column] for row in rows)]
    cells = [[row[column] for column in columns] for row in rows]
    return f"{tabulate(cells, columns, tablefmt='github', disable_numparse=True)}\n"


def update(text: str, measure: str | None = None) -> str:
    """The document with its tables written anew, FLOPs of the configs with ``measure`` in the name.

    Raises:
        ValueError: if a folder of configs has no table, or a table no folder.
    """
    names: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        if not path.name.startswith("Base-"):
            names.setdefault(path.parent.name, []).append(f"{path.parent.name}/{path.stem}")
    tables = {folder for match in TABLE.finditer(text) for folder in match["folders"].split()}
    if tables != set(names):
        raise ValueError(
            f"{DOCUMENT.name} has tables for {sorted(tables)}, configs/ has {sorted(names)}"
        )
    old = {}
    for match in TABLE.finditer(text):
        old |= read_table(match["rows"])
    chosen = [n for group in names.values() for n in group if measure is not None and measure in n]
    measured = measure_flops(chosen)

    def table(match: re.Match) -> str:
        configs = [name for folder in match["folders"].split() for name in names[folder]]
        rows = [row(name, old.get(name, {}), measured.get(name)) for name in configs]
        return f"{match[1]}{to_markdown(rows)}{match[4]}"

    return TABLE.sub(table, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--flops", nargs="?", const="", metavar="NAME", help="measure FLOPs too")
    group.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    args = parser.parse_args(argv)
    text = DOCUMENT.read_text()
    new = update(text, args.flops)
    if args.check and new != text:
        sys.exit(f"{DOCUMENT} is out of date; run python tools/model_zoo_table.py")
    if not args.check:
        DOCUMENT.write_text(new)


if __name__ == "__main__":
    main()
