"""The sections of a report on one model."""

from __future__ import annotations

import io

import numpy as np

from hypernet_d2.evaluation.plots import plot_recall
from hypernet_d2.evaluation.size_classes import COCO_SIZES

from . import plots
from .advice import RunFiles, give_advice
from .analysis import DEFAULT_THRESHOLD, Analysis
from .errors import KINDS
from .page import Bullets, Picture, Section, Table, Text
from .pictures import draw_errors, draw_samples, to_jpeg, worst_images

__all__ = [
    "class_section",
    "confusion_section",
    "data_section",
    "error_section",
    "proposal_section",
    "size_section",
    "summary_section",
    "threshold_section",
    "training_section",
    "worst_section",
]

MAX_BARS = 40  # classes in a plot of bars


def figure(value: float | None, digits: int = 1) -> str:
    """A number as a cell of a table; – where it is not defined."""
    return "–" if value is None or np.isnan(value) else f"{value:.{digits}f}"


def lowest_classes(analysis: Analysis, most: int) -> list[int]:
    """The classes with ground truth, in their order; at most ``most``, those of the lowest AP."""
    known = [c for c in range(len(analysis.curves)) if analysis.curves[c].objects]
    worst = sorted(known, key=lambda c: analysis.results["all"].of_class(c).ap)[:most]
    return sorted(worst)


def summary_section(analysis: Analysis, run: RunFiles) -> Section:
    """The main figures, and what to try next."""
    data, result, cfg = analysis.data, analysis.results["all"], run.cfg
    right, wrong = int((analysis.errors.kinds == "").sum()), int(analysis.wrong.sum())
    objects = int(data.objects.sum())
    header = ["set", "images", "objects", "AP", "AP50", "AP75", "AR", "found", "wrong"]
    row = [data.name, str(len(data.images)), str(objects)]
    row += [figure(value) for value in (result.ap, result.ap50, result.ap75, result.ar)]
    row += [f"{right} ({100 * right / objects:.0f} %)", str(wrong)]
    text = (
        "AP and AR are COCO's, in percent, with at most "
        f"{data.max_detections} detections of a class in an image. Found and wrong count the "
        "detections above the threshold of their class (below), at an IoU of 0.5."
    )
    size = f"{cfg.INPUT.MIN_SIZE_TEST} (at most {cfg.INPUT.MAX_SIZE_TEST})"
    model = (
        f"Model: {cfg.MODEL.PROPOSAL_GENERATOR.NAME} and {cfg.MODEL.ROI_HEADS.NAME} on "
        f"{cfg.MODEL.BACKBONE.NAME}; short side of the input {size} pixels; "
        f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images."
    )
    advice = give_advice(analysis, run)
    blocks = [Table(header, [row]), Text(text), Text(model)]
    if advice:
        blocks += [Text("What to try next:"), Bullets(advice)]
    else:
        blocks.append(Text("None of the rules on what to try next applies to these figures."))
    return Section("Result", blocks)


def data_section(
    analysis: Analysis, train_name: str | None, records: list[dict], sides: dict[str, np.ndarray],
    counts: dict[str, np.ndarray],
) -> Section:  # fmt: skip
    """Pictures, number of objects by class, and sizes.

    Args:
        analysis: of the evaluated set.
        train_name: of the training set, if it is registered.
        records: whose pictures are shown.
        sides: {data set: roots of the areas of its objects}.
        counts: {data set: (K,) objects of each class}.
    """
    bounds = [low**0.5 for low, _ in list(analysis.sizes.values())[1:]]
    rows = [
        [name, *(str(int(values[label])) for values in counts.values())]
        for label, name in enumerate(analysis.data.classes)
    ]
    shown = train_name or analysis.data.name
    blocks = [
        Picture(
            "data.jpg",
            to_jpeg(draw_samples(records, analysis.data.classes)),
            f"Images of {shown}, evenly spaced in the set, with their ground truth.",
        ),
        Table(["class", *(f"objects in {name}" for name in counts)], rows),
        Picture(
            "sizes_of_objects.png",
            plots.plot_sides(sides, bounds),
            "Sizes of the objects. The dotted lines divide the evaluated set into classes of equal "
            "number, which are used below.",
        ),
    ]
    if train_name is None:
        blocks.append(Text("The training set is not registered here; --data PATH registers it."))
    return Section("Data", blocks)


def training_section(models: dict[str, RunFiles], data_set: str) -> Section:
    """Curves of the losses and of AP."""
    trainings = {name: run.training for name, run in models.items()}
    if not any(training.curves for training in trainings.values()):
        return Section("Training", [Text("There is no metrics.json: no curves of a training.")])
    caption = (
        "The thick line is the running median. The validation loss is there if the training "
        "computed it."
    )
    return Section(
        "Training", [Picture("training.png", plots.plot_training(trainings, data_set), caption)]
    )


def class_section(models: dict[str, Analysis]) -> Section:
    """AP by class."""
    first = next(iter(models.values()))
    header, rows = ["class", "objects"], []
    several = len(models) > 1
    for name in models:
        header += [f"{name}: {what}" if several else what for what in ("AP", "AP50", "AR")]
    for label, name in enumerate(first.data.classes):
        row = [name, str(first.curves[label].objects)]
        for analysis in models.values():
            own = analysis.results["all"].of_class(label)
            row += [figure(own.ap), figure(own.ap50), figure(own.ar)]
        rows.append(row)
    order = lowest_classes(first, MAX_BARS)
    caption = "" if len(order) < MAX_BARS else f"The {MAX_BARS} classes of the lowest AP."
    picture = Picture("classes.png", plots.plot_classes(models, order), caption)
    return Section("AP by class (%)", [picture, Table(header, rows)])


def size_section(models: dict[str, Analysis]) -> Section:
    """AP and recall by the size of the objects, in COCO's classes and in those of the set."""
    first = next(iter(models.values()))
    several = len(models) > 1
    measures = ("AP", "AP50", "AR", "found")
    header = ["objects of size", "number"]
    for name in models:
        header += [f"{name}: {what}" if several else what for what in measures]
    rows = []
    for size in [*COCO_SIZES, *first.sizes]:
        chosen = first.of_size(size)
        row = [first.describe_size(size), str(int(chosen.sum()))]
        for analysis in models.values():
            result = analysis.results[size]
            found = 100 * analysis.found[chosen].mean() if chosen.any() else None
            row += [figure(v) for v in (result.ap, result.ap50, result.ar, found)]
        rows.append(row)
    text = (
        "Sizes are roots of areas, in pixels of the stored images. Small, medium and large are "
        "COCO's; the others divide the objects of the set into classes of equal number. AR is the "
        "recall of all detections, averaged over IoU 0.5 to 0.95; found is the recall above the "
        "thresholds, at IoU 0.5."
    )
    picture = Picture(
        "sizes.png", plots.plot_sizes(models, list(first.sizes)), "In classes of equal number."
    )
    return Section("AP by size (%)", [picture, Table(header, rows), Text(text)])


def threshold_section(models: dict[str, Analysis]) -> Section:
    """Precision, recall and F1 against the score, and the best threshold of each class."""
    first = next(iter(models.values()))
    several = len(models) > 1
    header = ["class"]
    for name in models:
        header += [
            f"{name}: {what}" if several else what
            for what in ("threshold", "F1", "precision", "recall")
        ]
    rows = []
    for label, class_name in enumerate(first.data.classes):
        row = [class_name]
        for analysis in models.values():
            curve, threshold = analysis.curves[label], analysis.thresholds[label]
            if threshold is None:
                row += ["–"] * 4
                continue
            at = int((curve.scores >= threshold).sum()) - 1
            row += [figure(v, 3) for v in (threshold, curve.f1[at])]
            row += [figure(v, 3) for v in (curve.precision[at], curve.recall[at])]
        rows.append(row)
    most = plots.MAX_CURVES if not several else 5
    order = lowest_classes(first, most)
    few = "" if len(order) < most else f" The {most} classes of the lowest AP."
    text = (
        "The threshold of a class is the score with the largest F1 at an IoU of 0.5; "
        "score_thresholds.json holds them, and an exported model has them as its default. A class "
        f"without a right detection has none; {DEFAULT_THRESHOLD:g} is used here."
    )
    picture = Picture("curves.png", plots.plot_curves(models, order), few.strip())
    return Section("Precision, recall and thresholds", [picture, Table(header, rows), Text(text)])


def confusion_section(analysis: Analysis) -> Section:
    """The confusion matrix, or the pairs of classes that are confused most."""
    text = (
        "Detections above the thresholds. Each object and each detection counts once: pairs of one "
        "class first, then pairs of different classes with an IoU of 0.5 or more. Objects without "
        "a detection are in the last column, detections without an object in the last row."
    )
    classes, matrix = analysis.data.classes, analysis.confusion
    if len(classes) <= plots.MAX_MATRIX:
        picture = Picture("confusion.png", plots.plot_confusion(analysis), "")
        return Section("Confusion of classes", [picture, Text(text)])
    pairs = matrix[:-1, :-1] * (1 - np.eye(len(classes), dtype=int))
    rows = []
    for flat in np.argsort(-pairs, axis=None)[:30]:
        row, column = np.unravel_index(flat, pairs.shape)
        if pairs[row, column]:
            share = 100 * pairs[row, column] / matrix[row].sum()
            rows.append([classes[row], classes[column], str(pairs[row, column]), f"{share:.0f} %"])
    table = Table(["object", "detected as", "number", "share of the objects"], rows)
    return Section("Confusion of classes", [table, Text(text)])


def error_section(models: dict[str, Analysis]) -> Section:
    """Errors by kind and by size."""
    picture = Picture("errors.png", plots.plot_errors(models))
    header, rows = ["kind of error"], []
    for name, analysis in models.items():
        prefix = f"{name}: " if len(models) > 1 else ""
        header += [f"{prefix}lost AP50", f"{prefix}number"]
        if len(models) == 1:
            header += [analysis.describe_size(size) for size in analysis.sizes]
    for kind in KINDS:
        row = [kind]
        for analysis in models.values():
            row += [figure(analysis.lost[kind]), str(analysis.errors.count(kind))]
            if len(models) == 1:
                areas = analysis.error_areas(kind)
                for low, high in analysis.sizes.values():
                    row.append(str(int(((areas >= low) & (areas < high)).sum())))
        rows.append(row)
    text = (
        "The kinds are those of TIDE (Bolya et al., ECCV 2020): classification: wrong class, IoU "
        "0.5 or more; localization: right class, IoU 0.1 to 0.5; both: wrong class and IoU 0.1 to "
        "0.5; duplicate: another detection with a higher score has the object; background: IoU "
        "below 0.1 with every object; missed: an object that none of these is about. Lost AP50 is "
        "what AP50 of all detections would gain if the errors of this kind alone were mended; the "
        "numbers are those above the thresholds. Sizes are those of the object, or of a detection "
        "on background."
    )
    return Section("Errors by kind", [picture, Table(header, rows), Text(text)])


def worst_section(analysis: Analysis, count: int = 20) -> Section:
    """The images with the most errors, with ground truth and detections."""
    images = worst_images(analysis, count)
    if not images:
        return Section("Worst pictures", [Text("No image has an error above the thresholds.")])
    text = (
        f"The {len(images)} images with the most errors above the thresholds. Left the ground "
        "truth: green is found, red is not. Right the detections: green is right, orange wrong."
    )
    blocks: list = [Text(text)]
    for number, image in enumerate(images, start=1):
        name = str(analysis.data.images[image]["file_name"])
        sheet = to_jpeg(draw_errors(analysis, image))
        blocks.append(Picture(f"worst_{number:02}.jpg", sheet, name))
    return Section("Worst pictures", blocks)


def proposal_section(models: dict[str, dict]) -> Section:
    """Recall of the proposals, from the files of ProposalRecallEvaluator."""
    numbers = ("10", "50", "100", "200", "1000")
    rows = [
        [name, *(figure(recall["AR"][number]["all"]) for number in numbers)]
        for name, recall in models.items()
    ]
    buffer = io.BytesIO()
    plot_recall({name: [recall] for name, recall in models.items()}, buffer)
    return Section(
        "Recall of the proposals (%)",
        [
            Picture("proposals.png", buffer.getvalue(), "Objects of all sizes."),
            Table(["model", *(f"AR@{number}" for number in numbers)], rows),
        ],
    )
