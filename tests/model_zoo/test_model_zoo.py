"""The configs: what they say, and that every one trains, evaluates and detects."""

import json
import runpy
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from tests.helpers import TINY, write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))
NAMES = [name for name in FILES if not Path(name).name.startswith("Base-")]
# One of each kind, of the smallest trunk. The others are trained by `make test-all`.
NOT_SLOW = """
BCCD-Detection/hypernet_R_18 BCCD-Detection/hypernet_SP_R_18 BCCD-Detection/faster_rcnn_R_18_FPN
PascalVOC-Detection/hypernet_AlexNet Digits-Detection/faster_rcnn_R_18_C4
Digits-InstanceSegmentation/hypercolumn_R_18 Digits-Keypoints/hypercolumn_R_18
Real/hypernet_lite0
""".split()
ZOO = """
PascalVOC-Detection/hypernet_VGG16 PascalVOC-Detection/hypernet_SP_VGG16
PascalVOC-Detection/hypernet_AlexNet PascalVOC-Detection/hypernet_SP_AlexNet
PascalVOC-Detection/hypernet_R_50
PascalVOC-Detection/faster_rcnn_VGG16 PascalVOC-Detection/faster_rcnn_AlexNet
COCO-Detection/hypernet_VGG16_1x COCO-Detection/hypernet_R_50_1x COCO-Detection/hypernet_R_101_3x
COCO-Detection/hypernet_SP_R_50_1x COCO-Detection/faster_rcnn_VGG16_1x
BCCD-Detection/hypernet_R_18 BCCD-Detection/hypernet_SP_R_18
BCCD-Detection/faster_rcnn_R_18_C4 BCCD-Detection/faster_rcnn_R_18_FPN
Digits-Detection/hypernet_R_18 Digits-Detection/hypernet_SP_R_18
Digits-Detection/faster_rcnn_R_18_C4 Digits-Detection/faster_rcnn_R_18_FPN
COCO-InstanceSegmentation/hypercolumn_VGG16_1x COCO-InstanceSegmentation/hypercolumn_R_50_1x
COCO-Keypoints/hypercolumn_R_50_1x
""".split()
LAZY = "COCO-Detection/hypernet_R_50_1x.py"

# As helpers.TINY, and what these configs have besides.
SHRUNKEN = [
    *TINY,
    "MODEL.WEIGHTS", "",
    "INPUT.MAX_SIZE_TRAIN", 128,
    "INPUT.MAX_SIZE_TEST", 128,
    "SOLVER.MAX_ITER", 2,
    "SOLVER.STEPS", (),
    "SOLVER.BASE_LR", 1e-7,  # random weights under frozen normalization have huge activations
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,  # so that there is something to evaluate
]  # fmt: skip


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merged(name: str) -> dict:
    """{dotted key: value} that a config and all its bases state."""
    from detectron2.config import CfgNode

    return dict(leaves(CfgNode.load_yaml_with_base(str(CONFIGS / name))))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, str]:
    """{name of a set, or else evaluator kind: name of a tiny set in its place}, registered."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances, register_pascal_voc

    root = tmp_path_factory.mktemp("zoo")
    write_voc(root, count=2)
    for path in (root / "Annotations").iterdir():
        text = path.read_text().replace(">square<", ">aeroplane<").replace(">bar<", ">bicycle<")
        fields = "<pose>Unspecified</pose><truncated>0</truncated><difficult>"
        path.write_text(text.replace("<difficult>", fields))
    register_pascal_voc("zoo_voc", str(root), "all", 2007)
    MetadataCatalog.get("zoo_voc").evaluator_type = "pascal_voc"
    write_coco(root / "instances.json", DatasetCatalog.get("zoo_voc"))
    images = str(root / "JPEGImages")
    register_coco_instances("zoo_coco", {}, str(root / "instances.json"), images)
    write_coco(root / "cells.json", DatasetCatalog.get("zoo_voc"), num_classes=3)
    register_coco_instances("zoo_cells", {}, str(root / "cells.json"), images)
    write_persons(root / "persons.json", root / "instances.json")
    keys = ["keypoint_names", "keypoint_flip_map"]
    people = MetadataCatalog.get("keypoints_coco_2017_val")
    names = {key: people.get(key) for key in keys}
    register_coco_instances("zoo_persons", names, str(root / "persons.json"), images)
    register_digits("zoo_digits", root, [*keys, "part_names"])
    return {
        "pascal_voc": "zoo_voc",
        "coco": "zoo_coco",
        "bccd_test": "zoo_cells",
        "my_val": "zoo_coco",
        "keypoints_coco_2017_val": "zoo_persons",
        "coco_sample": "zoo_persons",
        "digits_val": "zoo_digits",
    }


def register_digits(name: str, root: Path, keys: list[str]) -> None:
    """Two scenes of digits, with the metadata of digits_val in ``keys``."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    from hypernet_d2.data import generate_digits

    folder = generate_digits(root, "val", num_images=2)
    json_file = str(folder / "annotations.json")
    DatasetCatalog.register(
        name, lambda: load_coco_json(json_file, str(folder), name, extra_annotation_keys=["parts"])
    )
    digits = MetadataCatalog.get("digits_val")
    metadata = {key: digits.get(key) for key in keys}
    MetadataCatalog.get(name).set(json_file=json_file, evaluator_type="coco", **metadata)


def write_persons(path: Path, instances: Path) -> None:
    """The same objects, all of one class, with COCO's 17 keypoints on the diagonal of the box."""
    content = json.loads(instances.read_text())
    content["categories"] = [{"id": 1, "name": "person"}]
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        points = [(x + w * i / 17, y + h * i / 17, 2) for i in range(17)]
        keypoints = [value for point in points for value in point]
        item |= {"category_id": 1, "keypoints": keypoints, "num_keypoints": 17}
    path.write_text(json.dumps(content))


def write_coco(path: Path, records: list[dict], num_classes: int = 80) -> None:
    """The records as COCO json, each box its object's outline."""
    images, annotations = [], []
    for i, record in enumerate(records):
        size = {key: record[key] for key in ("height", "width")}
        images.append({"id": i, "file_name": Path(record["file_name"]).name, **size})
        for item in record["annotations"]:
            x1, y1, x2, y2 = item["bbox"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": item["category_id"] + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(num_classes)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


@pytest.fixture
def read_keys(monkeypatch) -> set[str]:
    """Collects the dotted keys that are read from configs on which :func:`name_nodes` was called.

    A node carries its name with it, so that reading from a copy of the config counts too.
    """
    from yacs.config import CfgNode

    from hypernet_d2 import config

    keys, get = set(), CfgNode.__getattr__

    def recording(self, name):
        value = get(self, name)
        if not isinstance(value, CfgNode) and "_name" in self.__dict__:
            keys.add(self.__dict__["_name"] + name)
        return value

    def add_named_config(cfg):
        add_hypernet_config(cfg)
        name_nodes(cfg.MODEL.HYPERNET, "MODEL.HYPERNET.")

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    # The modules read the copy of the node that hypernet_node builds.
    add_hypernet_config = config.add_hypernet_config
    monkeypatch.setattr(config, "add_hypernet_config", add_named_config)
    return keys


def name_nodes(node: dict, name: str = "") -> None:
    node.__dict__["_name"] = name
    for key, value in node.items():
        if isinstance(value, dict):
            name_nodes(value, f"{name}{key}.")


def evaluator_kind(names: tuple[str, ...]) -> str:
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get(names[0]).evaluator_type


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # VOC classes without objects
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.removesuffix(".yaml") in NOT_SLOW else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_every_config_trains_evaluates_and_detects_and_reads_all_its_keys(
    name, data, read_keys, tmp_path
):
    from detectron2.engine import hooks

    from hypernet_d2 import model_zoo
    from hypernet_d2.engine import Trainer

    cfg = model_zoo.get_config(name)
    names = (data.get(cfg.DATASETS.TEST[0]) or data[evaluator_kind(cfg.DATASETS.TEST)],)
    opts = ["DATASETS.TRAIN", names, "DATASETS.TEST", names, "OUTPUT_DIR", str(tmp_path)]
    cfg.merge_from_list([*SHRUNKEN, *opts])
    name_nodes(cfg)
    trainer = Trainer(cfg)
    trainer._hooks = [h for h in trainer._hooks if not isinstance(h, hooks.PeriodicCheckpointer)]
    trainer.train()
    assert trainer.iter == 2
    for task in tasks(cfg):
        assert {"AP", "AP50"} <= trainer._last_eval_results[task].keys()
    with torch.no_grad():
        (output,) = trainer.model.eval()([{"image": torch.rand(3, 64, 64) * 255}])
    assert output["instances"].has("pred_boxes")

    trainer.resume_or_load(resume=False)  # which reads MODEL.WEIGHTS
    assert merged(name).keys() - {"VERSION"} - read_keys == set()
    if cfg.MODEL.BACKBONE.NAME == "build_hyper_backbone":
        ours = {f"MODEL.HYPERNET.{key}" for key, _ in leaves(cfg.MODEL.HYPERNET)}
        assert ours - read_keys == unused_keys(cfg)


def tasks(cfg) -> list[str]:
    """What a model is evaluated for."""
    masks = "parts" if cfg.MODEL.ROI_MASK_HEAD.NAME == "HypercolumnPartHead" else "segm"
    return ["bbox"] + [masks] * cfg.MODEL.MASK_ON + ["keypoints"] * cfg.MODEL.KEYPOINT_ON


def unused_keys(cfg) -> set[str]:
    """The keys that nothing in this config reads."""
    heads = {cfg.MODEL.ROI_MASK_HEAD.NAME} if cfg.MODEL.MASK_ON else set()
    heads |= {cfg.MODEL.ROI_KEYPOINT_HEAD.NAME} if cfg.MODEL.KEYPOINT_ON else set()
    readers = {
        "IN_FEATURES": {"build_hyper_backbone"},
        "FULL_WEIGHT_SIZE": {"HypercolumnMaskHead", "HypercolumnPartHead"},
        "NUM_PARTS": {"HypercolumnPartHead"},
    }
    every = {"HypercolumnMaskHead", "HypercolumnPartHead", "HypercolumnKeypointHead"}
    node = "MODEL.HYPERNET.HYPERCOLUMN"
    present = {*heads, cfg.MODEL.BACKBONE.NAME}
    unused = {
        f"{node}.{key}"
        for key in cfg.MODEL.HYPERNET.HYPERCOLUMN
        if not readers.get(key, every) & present
    }
    if cfg.MODEL.HYPERNET.TRUNK != "build_timm_backbone":
        unused |= {"MODEL.HYPERNET.TIMM.NAME", "MODEL.HYPERNET.TIMM.NORM"}
    unused |= {"MODEL.HYPERNET.DATA.PATH", "MODEL.HYPERNET.DATA.SPLIT"}
    unused |= {"MODEL.HYPERNET.TRAIN.METRIC"}  # of the best checkpoint
    tiles = cfg.MODEL.HYPERNET.TILES
    if not tiles.TRAIN_SIZE:
        unused |= {
            "MODEL.HYPERNET.TILES.TRAIN_MIN_VISIBLE",
            "MODEL.HYPERNET.TILES.TRAIN_EMPTY_SHARE",
        }
    unused |= set() if tiles.SIZE else {"MODEL.HYPERNET.TILES.WHOLE_IMAGE"}
    return unused if tiles.SIZE or tiles.TRAIN_SIZE else {*unused, "MODEL.HYPERNET.TILES.OVERLAP"}


@pytest.mark.parametrize("name", FILES)
def test_no_config_repeats_a_value_of_its_bases(name):
    path = CONFIGS / name
    own = yaml.safe_load(path.read_text())
    bases = own.pop("_BASE_", [])
    seen: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        stated = merged(str(Path(name).parent / base))
        assert {k: v for k, v in stated.items() if k in seen and seen[k] == v} == {}
        seen.update(stated)
    assert {key: value for key, value in leaves(own) if key in seen and seen[key] == value} == {}


def test_the_zoo_has_the_promised_configs():
    assert {f"{name}.yaml" for name in [*ZOO, *NOT_SLOW]} <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if "_SP_" in name])
def test_hypernet_sp_is_one_key(name):
    whole = merged(name.replace("_SP_", "_"))
    key = "MODEL.HYPERNET.PROPOSALS.CONV_BEFORE_POOLING"
    assert merged(name) == {**whole, key: True} and whole.get(key) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("Ablations/")])
def test_an_ablation_is_one_key(name):
    base = merged("PascalVOC-Detection/hypernet_VGG16.yaml")
    assert len(set(_items(merged(name))) - set(_items(base))) == 1


def _items(tree: dict) -> list[tuple[str, str]]:
    return [(key, repr(value)) for key, value in tree.items()]


def test_the_base_for_own_data_flips_images():
    from hypernet_d2 import model_zoo

    cfg = model_zoo.get_config("Custom-Detection/hypernet_R_18.yaml")
    assert cfg.INPUT.RANDOM_FLIP == "horizontal"


def test_a_config_that_is_not_there_is_named_beside_those_that_are():
    from hypernet_d2 import model_zoo

    with pytest.raises(
        ValueError, match=r"'COCO/x\.yaml' is not in .*hypernet_R_50_1x\.py"
    ) as error:
        model_zoo.get_config_file("COCO/x.yaml")
    assert all(name in str(error.value) for name in NAMES)


@pytest.mark.parametrize("suffix", ["yaml", "py"])
def test_get_gives_the_model_with_its_initial_weights(suffix, monkeypatch):
    from detectron2.checkpoint import DetectionCheckpointer

    from hypernet_d2 import model_zoo

    loaded = []
    monkeypatch.setattr(DetectionCheckpointer, "load", lambda self, path: loaded.append(path) or {})
    with torch.device("meta"):
        model = model_zoo.get(f"COCO-Detection/hypernet_R_50_1x.{suffix}", device="meta")
    assert model.training and model.device.type == "meta"
    assert loaded == ["detectron2://ImageNetPretrained/MSRA/R-50.pkl"]


@pytest.mark.slow
def test_the_page_of_the_model_zoo_has_every_config_and_its_parameters():
    tool = runpy.run_path(str(ROOT / "tools/model_zoo_table.py"))
    text = tool["DOCUMENT"].read_text()
    assert tool["update"](text) == text


def test_hypernet_vgg16_has_as_many_parameters_as_the_paper_implies():
    from detectron2.modeling import build_model

    from hypernet_d2 import model_zoo

    cfg = model_zoo.get_config("PascalVOC-Detection/hypernet_VGG16.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)

    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side**2 + outputs

    def fc(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    heads = model.roi_heads
    expected = {
        model.backbone.trunk: sum(conv(a, b, 3) for a, b in zip(widths, widths[1:], strict=False)),
        # conv5 is deconvolved by 4 with a kernel of 8 before its convolution.
        model.backbone.hyper_feature: conv(64, 42, 5)
        + conv(256, 42, 5)
        + conv(512, 42, 8)
        + conv(42, 42, 5),
        model.proposal_generator: conv(126, 4, 3) + fc(13 * 13 * 4, 256) + fc(256, 1) + fc(256, 4),
        heads.box_head: conv(126, 63, 3) + fc(13 * 13 * 63, 4096) + fc(4096, 4096),
        heads.box_predictor: fc(4096, 21) + fc(4096, 80),
        model: 0,
    }
    expected[model] = sum(expected.values())
    for module, count in expected.items():
        assert sum(p.numel() for p in module.parameters()) == count, type(module).__name__


class TestLazyConfig:
    """The LazyConfig form of hypernet_R_50_1x against the yaml form."""

    @pytest.fixture(scope="class")
    def lazy(self):
        from hypernet_d2 import model_zoo

        return model_zoo.get_config(LAZY)

    def test_it_builds_the_same_model(self, lazy):
        from detectron2.config import instantiate
        from detectron2.modeling import build_model

        from hypernet_d2 import model_zoo

        cfg = model_zoo.get_config(LAZY.replace(".py", ".yaml"))
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            ours, theirs = instantiate(lazy.model), build_model(cfg)
        assert shapes(ours) == shapes(theirs)
        assert frozen(ours) == frozen(theirs)
        for a, b in zip(ours.modules(), theirs.modules(), strict=True):
            differing = settings(a).items() ^ settings(b).items()
            assert {key for key, _ in differing} <= {"loss_weight"}  # 1 is stated or left out

    def test_its_schedule_is_that_of_the_yaml(self, lazy):
        from detectron2.config import instantiate

        yaml_form = merged(LAZY.replace(".py", ".yaml"))
        multiplier = instantiate(lazy.lr_multiplier)
        steps = literal_eval(yaml_form["SOLVER.STEPS"])
        assert lazy.train.max_iter == yaml_form["SOLVER.MAX_ITER"]
        assert lazy.optimizer.lr == yaml_form["SOLVER.BASE_LR"]
        assert lazy.train.init_checkpoint == yaml_form["MODEL.WEIGHTS"]
        assert lazy.dataloader.train.dataset.names == literal_eval(yaml_form["DATASETS.TRAIN"])[0]
        for step, after in zip(steps, (0.1, 0.01), strict=True):
            at = step / lazy.train.max_iter
            assert multiplier(at - 1e-4) == pytest.approx(10 * after)
            assert multiplier(at + 1e-4) == pytest.approx(after)

    def test_it_trains_a_step(self, lazy):
        from detectron2.config import instantiate
        from detectron2.utils.events import EventStorage
        from omegaconf import OmegaConf

        from tests.helpers import batched_inputs

        small = OmegaConf.create(lazy, flags={"allow_objects": True})
        small.model.roi_heads.box_head.fc_dims = [16, 16]
        small.model.roi_heads.box_predictor.input_shape.channels = 16
        model = instantiate(small.model).train()
        small.optimizer.params.model = model
        optimizer = instantiate(small.optimizer)
        with EventStorage():
            losses = model(batched_inputs((64, 64)))
        assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
        before = model.backbone.hyper_feature.branches["res5"].conv.weight.clone()
        sum(losses.values()).backward()
        optimizer.step()
        assert not torch.equal(model.backbone.hyper_feature.branches["res5"].conv.weight, before)


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def plain(value) -> str:
    """The value in words, lists and tuples alike."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return str([plain(item) for item in value]) if is_list else str(value)


def settings(module) -> dict[str, str]:
    """The plain values that a module, its matcher, transform or window grid was built with."""
    found = {}
    for key, value in vars(module).items():
        if type(value).__name__ in ("Matcher", "Box2BoxTransform", "WindowGrid"):
            found.update({f"{key}.{k}": plain(v) for k, v in vars(value).items()})
        elif isinstance(value, bool | int | float | str):
            found[key] = plain(value)
        elif isinstance(value, Sequence):
            found[key] = plain(value)
        elif isinstance(value, dict) and not key.startswith("_"):
            found[key] = str({k: plain(v) for k, v in value.items()})
    return found


def frozen(model) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.bccd
def test_the_trained_model_finds_the_white_cell_of_a_photograph(bccd_root):
    """Its weights are stored as float16."""
    pytest.importorskip("timm", reason="the trunk")
    from detectron2.data.detection_utils import read_image
    from detectron2.engine import DefaultPredictor

    from hypernet_d2 import model_zoo

    cfg = model_zoo.get_config("BCCD-Detection/hypernet_lite0.yaml", trained=True)
    cfg.MODEL.DEVICE = "cpu"
    file = sorted(path for path in (bccd_root / "JPEGImages").iterdir() if "00000" in path.name)[0]
    found = DefaultPredictor(cfg)(read_image(str(file), "BGR"))["instances"]
    sure = found[found.scores > 0.8]
    assert int((sure.pred_classes == 1).sum()) == 1  # WBC
    assert int((sure.pred_classes == 0).sum()) > 5  # RBC


def test_a_config_without_a_trained_model_names_those_that_have_one():
    from hypernet_d2 import model_zoo

    with pytest.raises(ValueError, match="is published; there are: BCCD-Detection/hypernet_lite0"):
        model_zoo.get_checkpoint_url("COCO-Detection/hypernet_R_50_1x.yaml")
