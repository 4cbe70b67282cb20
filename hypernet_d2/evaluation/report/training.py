"""The curves of a training, from the metrics.json of detectron2's JSONWriter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Training", "read_training"]

VALIDATION_LOSS = "validation_loss"


@dataclass(frozen=True)
class Training:
    """
    Attributes:
        curves: {scalar: (iterations, values)}, two arrays; empty where a model was only evaluated.
    """

    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    def losses(self) -> list[str]:
        """The names of the parts of the training loss."""
        return [name for name in self.curves if name.startswith("loss_")]

    def precision(self, dataset_name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Iterations and AP of boxes of an evaluated set, or None."""
        for name in (f"{dataset_name}/bbox/AP", "bbox/AP"):  # of several sets, or of one
            if name in self.curves:
                return self.curves[name]
        return None


def read_training(output_dir: Path) -> Training:
    """Read ``metrics.json``, which may be missing.

    A run that starts again in the same folder appends to the file: rows of the earlier run from
    that iteration on are left out.

    Raises:
        ValueError: the file has a line that is not json, other than an incomplete last one.
    """
    path = output_dir / "metrics.json"
    rows: list[dict] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # of a run that was stopped while it wrote
                break
            raise ValueError(f"{path}, line {number}: expected json, but {error}") from error
        if isinstance(row, dict) and "iteration" in row:
            while rows and rows[-1]["iteration"] > row["iteration"]:
                rows.pop()
            rows.append(row)
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and name != "iteration":
                points.setdefault(name, {})[row["iteration"]] = value
    return Training(
        {name: (np.array(list(p)), np.array(list(p.values()))) for name, p in points.items()}
    )
