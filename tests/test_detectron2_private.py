"""The private names of detectron2 and fvcore that hypernet_d2 uses, and why.

detectron2 may change them without notice. After an upgrade a failure here gives the name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import FunctionType

import pytest

pytestmark = pytest.mark.detectron2

PACKAGE = Path(__file__).resolve().parents[1] / "hypernet_d2"

# (module, object, reason): the object is "name", "Class.method", or "Class.attribute" for an
# attribute that the constructor of the class sets.
PRIVATE = [
    (
        "detectron2.checkpoint",
        "DetectionCheckpointer._load_file",
        "overridden: .pkl and .pyth files are read without running code in them",
    ),
    (
        "detectron2.checkpoint",
        "DetectionCheckpointer._torch_load",
        "overridden: the same for .pth files, on PyTorch 2.4 and 2.5 too",
    ),
    (
        "detectron2.checkpoint",
        "DetectionCheckpointer._load_model",
        "extended: parameters that do not fit raise an error",
    ),
    (
        "detectron2.checkpoint",
        "DetectionCheckpointer._parsed_url_during_load",
        "reset after a failed load; otherwise the next load fails",
    ),
    (
        "iopath.common.file_io",
        "PathHandler._get_supported_prefixes",
        "overridden: the prefix timm:// of weights",
    ),
    (
        "iopath.common.file_io",
        "PathHandler._get_local_path",
        "overridden: the file with the weights of a timm model",
    ),
    (
        "detectron2.data.transforms",
        "Augmentation._init",
        "called: keeps the arguments for the text of an augmentation",
    ),
    (
        "detectron2.data.transforms",
        "Augmentation._rand_range",
        "called: a random number, as in the stock augmentations",
    ),
    *[
        (
            "detectron2.engine.hooks",
            f"BestCheckpointer.{name}",
            "extended: validation losses are minimized, a resumed run keeps the best score, and "
            "training stops after a number of evaluations without a better one",
        )
        for name in (
            "_best_checking",
            "_checkpointer",
            "_compare",
            "_file_prefix",
            "_period",
            "_update_best",
            "_val_metric",
        )
    ],
    (
        "detectron2.engine",
        "SimpleTrainer._data_loader_iter",
        "read: several batches make one step of the optimizer",
    ),
    (
        "detectron2.engine",
        "SimpleTrainer._write_metrics",
        "called: the means of the losses of these batches",
    ),
    (
        "detectron2.engine",
        "DefaultTrainer._trainer",
        "set by our constructor, which replaces the stock one to pass options of "
        "DistributedDataParallel and to choose the checkpointer",
    ),
    (
        "detectron2.evaluation",
        "COCOEvaluator._derive_coco_results",
        "extended: AP and recall by size classes of the set",
    ),
    (
        "detectron2.evaluation",
        "COCOEvaluator._coco_api",
        "read by it: the areas of the objects",
    ),
    (
        "detectron2.evaluation",
        "COCOEvaluator._output_dir",
        "read: where the detections are written",
    ),
    (
        "detectron2.data",
        "DatasetMapper._transform_annotations",
        "extended: part labels are transformed with the image",
    ),
    (
        "detectron2.modeling.box_regression",
        "_dense_box_regression_loss",
        "the box loss of the RPN, with every loss type of MODEL.RPN.BBOX_REG_LOSS_TYPE",
    ),
    (
        "detectron2.modeling",
        "StandardROIHeads._init_box_head",
        "extended: the convolution before RoI pooling changes the channels that the head sees",
    ),
    (
        "detectron2.modeling",
        "StandardROIHeads._init_mask_head",
        "extended: a hypercolumn head takes whole feature maps",
    ),
    (
        "detectron2.modeling",
        "StandardROIHeads._init_keypoint_head",
        "extended: a hypercolumn head takes whole feature maps",
    ),
    (
        "detectron2.modeling",
        "StandardROIHeads._forward_box",
        "extended: runs the convolution before RoI pooling",
    ),
    (
        "detectron2.utils.visualizer",
        "Visualizer._jitter",
        "overridden: the stock color of a class varies at random from object to object",
    ),
    (
        "detectron2.utils.visualizer",
        "Visualizer._convert_boxes",
        "called: the overridden method takes boxes of the same types as the stock one",
    ),
]
NAMES = {name.rpartition(".")[2] for _, name, _ in PRIVATE}
# Private names of other packages, which the check below must not take for detectron2's.
OF_OTHER_PACKAGES = {
    "_ActionsContainer": "argparse",
    "_abc_impl": "abc",
    "_core": "numpy",
    "_dts": "pycocotools",
    "_exit": "os",
    "_gts": "pycocotools",
    "_replace": "collections.namedtuple",
}


# Packages of extras without which a module cannot be imported, and is not looked at.
OPTIONAL = {"gradio", "pyarrow", "ray", "fastapi", "uvicorn"}


@pytest.mark.parametrize(("module", "name", "reason"), PRIVATE)
def test_detectron2_has_the_private_name(module, name, reason):
    owner = importlib.import_module(module)
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    assert hasattr(owner, attribute) or attribute in constructor_names(owner), f"{name}: {reason}"


def constructor_names(cls: type) -> tuple[str, ...]:
    """The names that the constructor of a class uses, attributes included."""
    constructor = inspect.unwrap(vars(cls).get("__init__", object.__init__))
    return constructor.__code__.co_names if isinstance(constructor, FunctionType) else ()


def private(names) -> set[str]:
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def names_of_class(cls: type) -> set[str]:
    """The private names that a class defines, and those that its methods use."""
    found = private(vars(cls))
    for value in vars(cls).values():
        function = inspect.unwrap(getattr(value, "__func__", getattr(value, "fget", value)))
        if isinstance(function, FunctionType):
            found |= private(function.__code__.co_names)
    return found


def is_foreign(module: str | None) -> bool:
    return (module or "").split(".")[0] in ("detectron2", "fvcore", "iopath")


def modules():
    for info in pkgutil.walk_packages([str(PACKAGE)], "hypernet_d2."):
        if info.name.endswith("__main__"):
            continue
        try:
            yield importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise


def test_no_class_uses_a_private_name_of_its_base_that_is_not_listed():
    for module in modules():
        for cls in vars(module).values():
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            bases = [base for base in cls.__mro__ if is_foreign(base.__module__)]
            theirs = set().union(*(private({*vars(b), *constructor_names(b)}) for b in bases))
            unlisted = names_of_class(cls) & theirs - NAMES - set(OF_OTHER_PACKAGES)
            assert not unlisted, f"{cls.__module__}.{cls.__name__}"


def test_no_other_private_name_is_used():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    nodes = {path: list(ast.walk(tree)) for path, tree in trees.items()}
    ours = set()
    for node in (node for found in nodes.values() for node in found):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            ours.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            ours.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            ours.add(node.id)
    for path, found in nodes.items():
        used = private(node.attr for node in found if isinstance(node, ast.Attribute)) - ours
        for node in found:
            if isinstance(node, ast.ImportFrom) and is_foreign(node.module):
                used |= private(alias.name for alias in node.names)
        assert not used - NAMES - set(OF_OTHER_PACKAGES), path


def test_nothing_is_patched():
    for path in PACKAGE.rglob("*.py"):
        assert "unittest" not in path.read_text(encoding="utf-8"), path  # where mock.patch is from
