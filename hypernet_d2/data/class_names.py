"""Class names: their order in a data set and in a model, matched by name."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import MetadataCatalog

__all__ = ["check_test_classes", "match_classes", "training_classes"]


def training_classes(dataset_names: Sequence[str]) -> list[str] | None:
    """The class names of training sets that have been loaded; None where they have none."""
    for name in dataset_names:
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            return list(classes)
    return None


def check_test_classes(train: Sequence[str], test: Sequence[str]) -> None:
    """Compare the class names of test sets with those of the training sets; all have been loaded.

    Raises:
        ValueError: see `match_classes`.
    """
    known = training_classes(train)
    for name in test if known else ():
        if classes := MetadataCatalog.get(name).get("thing_classes"):
            match_classes(known, name, classes, f"the training set {train[0]!r}")


def match_classes(
    model_classes: Sequence[str],
    dataset_name: str,
    dataset_classes: Sequence[str],
    source: str = "the model",
) -> list[int]:
    """The model's number of each class of a data set, by name.

    Args:
        model_classes: names in the order of the model's class numbers.
        dataset_name: of the data set.
        dataset_classes: names in the order of the data set's class numbers.
        source: what has the model's classes, for the message.

    Raises:
        ValueError: naming both and their lists, if a class of the data set is none of the model's.
    """
    numbers = {name: i for i, name in enumerate(model_classes)}
    unknown = [name for name in dataset_classes if name not in numbers]
    if unknown:
        raise ValueError(
            f"data set {dataset_name!r} has the classes {list(dataset_classes)}, but {source} has "
            f"{list(model_classes)}: {', '.join(map(repr, unknown))} cannot be matched by name"
        )
    return [numbers[name] for name in dataset_classes]
