"""Sections of a report that compare models by their detections on one data set."""

from __future__ import annotations

import numpy as np

from . import sections
from .advice import RunFiles
from .analysis import Analysis
from .page import Picture, Section, Table, Text
from .pictures import draw_models, to_jpeg

__all__ = ["comparison_sections"]


def comparison_sections(
    models: dict[str, tuple[Analysis, RunFiles]], num_images: int = 12
) -> list[Section]:
    """AP by size and class, thresholds, kinds of errors, and the images that differ most.

    Args:
        models: {name: from `read_run`}, two or more on one data set.
        num_images: number of images that are shown.

    Raises:
        ValueError: the data sets have different names or objects.
    """
    analyses = {name: analysis for name, (analysis, _) in models.items()}
    first, *others = analyses.values()
    for name, analysis in analyses.items():
        if (analysis.data.name, len(analysis.data.areas)) != (
            first.data.name,
            len(first.data.areas),
        ):
            raise ValueError(
                f"{name}: evaluated on {analysis.data.name!r} with {len(analysis.data.areas)} "
                f"objects, but the first model on {first.data.name!r} with {len(first.data.areas)}"
            )
    runs = {name: run for name, (_, run) in models.items()}
    return [
        sections.training_section(runs, first.data.name),
        sections.size_section(analyses),
        sections.threshold_section(analyses),
        sections.error_section(analyses),
        _agreement_section(analyses),
        _image_section(analyses, num_images),
    ]


def _agreement_section(models: dict[str, Analysis]) -> Section:
    """How many objects which models find."""
    found = {name: analysis.found for name, analysis in models.items()}
    objects = next(iter(models.values())).data.objects
    rows = []
    for name, own in found.items():
        others = np.any([hits for other, hits in found.items() if other != name], axis=0)
        rows.append([name, *(str(int((objects & x).sum())) for x in (own, own & ~others))])
    together = objects & np.any(list(found.values()), axis=0)
    rows.append(["any model", str(int(together.sum())), ""])
    text = (
        f"Of {int(objects.sum())} objects, above the thresholds and at an IoU of 0.5. What only "
        "one model finds, the other could learn."
    )
    return Section(
        "Objects that each model finds", [Table(["model", "found", "only by it"], rows), Text(text)]
    )


def _image_section(models: dict[str, Analysis], count: int) -> Section:
    """The images whose number of errors differs most between the models."""
    first = next(iter(models.values()))
    errors = np.array([_errors_of_images(analysis) for analysis in models.values()])
    spread = errors.max(axis=0) - errors.min(axis=0)
    chosen = [int(i) for i in np.argsort(-spread, kind="stable")[:count] if spread[i]]
    if not chosen:
        return Section("Images that differ most", [Text("The models make as many errors in each.")])
    text = (
        f"The {len(chosen)} images whose numbers of errors above the thresholds differ most. "
        "Green: found and right; orange: a wrong detection; red: an object that is not found."
    )
    blocks: list = [Text(text)]
    for number, image in enumerate(chosen, start=1):
        numbers = ", ".join(f"{n} {e}" for n, e in zip(models, errors[:, image], strict=True))
        caption = f"{first.data.images[image]['file_name']}: errors of {numbers}"
        sheet = to_jpeg(draw_models(models, image))
        blocks.append(Picture(f"differs_{number:02}.jpg", sheet, caption))
    return Section("Images that differ most", blocks)


def _errors_of_images(analysis: Analysis) -> np.ndarray:
    """(images,) wrong detections, and objects that are not found."""
    data, size = analysis.data, len(analysis.data.images)
    wrong = np.bincount(data.image_of[analysis.wrong], minlength=size)
    return wrong + np.bincount(data.object_image[data.objects & ~analysis.found], minlength=size)
