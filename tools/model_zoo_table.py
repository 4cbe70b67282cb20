#!/usr/bin/env python3
"""Writes the tables of docs/MODEL_ZOO.md, one row for each config; or checks them.

    python tools/model_zoo_table.py             # parameters counted anew, the other cells kept
    python tools/model_zoo_table.py --flops     # FLOPs measured anew too (minutes on a CPU);
                                                # --flops R_18: of the configs with that in the name
    python tools/model_zoo_table.py --check     # exit status 1 if the file would change

A table stands between <!-- table FOLDER --> and <!-- end -->. Its last column, what was measured
with this project, is filled in by hand and kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from hypernet_d2 import model_zoo
from hypernet_d2.cli.cost import count_flops, count_parameters

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "MODEL_ZOO.md"
HEADER = "| config | parameters (M) | FLOPs (G) | published | measured |\n|---|---|---|---|---|\n"
ROW = re.compile(
    r"^\| \[.*\]\(\.\./configs/(?P<name>[^)]*)\.yaml\) \| [^|]* \| (?P<flops>[^|]*?) \|"
    r" [^|]* \| (?P<measured>[^|]*?) \|$",
    re.MULTILINE,
)
TABLE = re.compile(r"(<!-- table (?P<folder>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Long side of the image of which FLOPs are counted, for each short side that the configs test at.
LONG_SIDE = {600: 1000, 800: 1333, 240: 320}

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


def row(name: str, old: dict[str, str], new_flops: str | None) -> str:
    """One line of the table; ``old`` has the cells of the line that it replaces."""
    cells = [
        f"[{Path(name).name}](../configs/{name}.yaml)",
        f"{parameters(name):.1f}",
        new_flops or old.get("flops", ""),
        PUBLISHED.get(name, ""),
        old.get("measured", ""),
    ]
    return f"| {' | '.join(cells)} |\n"


def update(text: str, measure: str | None = None) -> str:
    """The document with its tables written anew, FLOPs of the configs with ``measure`` in the name.

    Raises:
        ValueError: if a folder of configs has no table, or a table no folder.
    """
    names: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        if not path.name.startswith("Base-"):
            names.setdefault(path.parent.name, []).append(f"{path.parent.name}/{path.stem}")
    tables = {match["folder"] for match in TABLE.finditer(text)}
    if tables != set(names):
        raise ValueError(
            f"{DOCUMENT.name} has tables for {sorted(tables)}, configs/ has {sorted(names)}"
        )
    old = {match["name"]: match.groupdict() for match in ROW.finditer(text)}
    chosen = [n for group in names.values() for n in group if measure is not None and measure in n]
    measured = measure_flops(chosen)

    def table(match: re.Match) -> str:
        rows = [row(n, old.get(n, {}), measured.get(n)) for n in names[match["folder"]]]
        return f"{match[1]}{HEADER}{''.join(rows)}{match[3]}"

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
