"""What the documentation says exists: commands, options, configuration keys, files and links."""

from __future__ import annotations

import argparse
import ast
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from string import Template

import pytest
import torch

import hypernet_d2
from hypernet_d2.deploy import DIGITS_MODEL
from hypernet_d2_cli import COMMANDS
from tests.helpers import TINY, tiny_cfg, write_voc

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
SHELL_VARIABLES = {"name": "vgg16", "file": "vgg16.pth"}  # of the loop in docs/MODEL_ZOO.md
# What scripts may import that not every installation has (the extras of setup.py).
OPTIONAL = {"gradio", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pycocotools", "sklearn"}
# What the reader of docs/CUSTOM_DATA.md writes, and what the training there writes.
USERS_FILES = {"my_config.yaml", "output/my_model/config.yaml"}


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(program: str) -> list:
    """One parameter for each command of the pages that starts with ``program``: its arguments.

    Those of ``hypernet-d2`` are given as arguments of ``python`` that do the same.
    """
    found = {}
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        lines = "\n".join(blocks(page, "", "sh", "bash")).replace("\\\n", " ").splitlines()
        inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose)]
        for line in [*lines, *inline]:
            line = Template(line).safe_substitute(SHELL_VARIABLES).strip()
            words = shlex.split(line, comments=True) if line.startswith(program) else []
            if len(words) > 1 and words[0] == program and words[1] != "--help":
                words = words[1:]
                if program == "hypernet-d2":
                    words = ["-m", "hypernet_d2", *words]
                found.setdefault(" ".join(words), pytest.param(words, id=" ".join(words)))
    return list(found.values())


class Parsed(BaseException):
    """Ends a script once it has read its command line; no handler of a script takes it."""


def start(words: list[str], monkeypatch) -> None:
    """Run ``python WORDS`` in this process."""
    monkeypatch.setattr(sys, "path", [str((ROOT / words[0]).parent), *sys.path])
    if words[0] == "-m":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        monkeypatch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
        runpy.run_path(sys.argv[0], run_name="__main__")


def parse(words: list[str], monkeypatch) -> argparse.Namespace:
    """What the script's own parser makes of the command line; SystemExit where it refuses it."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        parsed = read(self, args, namespace)
        if getattr(parsed, "command", None) in COMMANDS:  # which has a parser of its own
            return parsed
        raise Parsed(parsed)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    try:
        start(words, monkeypatch)
    except Parsed as parsed:
        return parsed.args[0]
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OPTIONAL:
            pytest.skip(f"{words[0]} needs {package}, which is not installed")
        raise
    raise AssertionError(f"{words[0]} reads no command line")


PYTHON_COMMANDS = [
    c
    for c in [*commands("python"), *commands("hypernet-d2")]
    if c.values[0][:2] != ["-m", "pytest"]
]
# A script whose name is all there is has no option to check.
WITH_OPTIONS = [c for c in PYTHON_COMMANDS if len(c.values[0]) > 1 and c.values[0][0] != "-c"]


@pytest.mark.detectron2
@pytest.mark.parametrize("words", WITH_OPTIONS)
def test_command_is_understood_and_its_config_and_keys_exist(words, monkeypatch):
    from hypernet_d2.engine import setup_cfg

    if words[0] == "-m" and not words[1].startswith("hypernet_d2"):
        return
    args = parse(words, monkeypatch)
    config = getattr(args, "config_file", None) or ""
    known = config not in USERS_FILES and "<" not in config and config != "..."
    if known and config:
        assert (ROOT / config).is_file()
    opts = [word for word in getattr(args, "opts", None) or [] if word != "..."]
    if len(opts) > 1:
        path = str(ROOT / config) if known and config else ""
        setup_cfg(argparse.Namespace(config_file=path, opts=opts))


def small_data(root: Path) -> Path:
    """``$DETECTRON2_DATASETS`` with a few images for BCCD and the digits."""
    from hypernet_d2.data.datasets import bccd, digits

    write_voc(root / "BCCD", 4, size=(240, 320))
    for file in (root / "BCCD/Annotations").iterdir():
        square = "WBC" if file.stem == "000" else "RBC"
        text = file.read_text().replace("<name>square", f"<name>{square}")
        file.write_text(text.replace("<name>bar", "<name>Platelets"))
    for split in bccd.SPLITS:
        shutil.copy(root / "BCCD/ImageSets/Main/all.txt", root / f"BCCD/ImageSets/Main/{split}.txt")
    shutil.copy(root / "BCCD/JPEGImages/000.jpg", root / "BCCD/JPEGImages/BloodImage_00000.jpg")
    for split, full in digits.SPLITS.items():
        few = digits.generate_digits(root / "digits", split, num_images=4)
        few.rename(few.with_name(few.name.replace("-n4", f"-n{full}")))
    return root


@pytest.fixture
def catalogs():
    """Removes the sets that a command registers, and the files that its evaluation wrote."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from hypernet_d2.data.datasets.builtin import register_builtin

    yield
    for name in DatasetCatalog.list():
        if name.startswith(("my_", "bccd_", "digits_")):
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)
    register_builtin()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A function that makes a folder the current one, with the files that the commands name."""
    data = small_data(tmp_path_factory.mktemp("data"))
    photographs = sorted((data / "BCCD/JPEGImages").iterdir())
    (config,) = blocks(ROOT / "docs/CUSTOM_DATA.md", "yaml")
    (digits,) = (data / "digits").glob("val-*")
    run_config = tiny_cfg().dump()
    own = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 3, config="Custom-Detection/hypernet_R_18.yaml")

    def make(folder: Path, monkeypatch) -> None:
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "BCCD_Dataset").symlink_to(data)
        (folder / "FOLDER").symlink_to(data / "BCCD")
        for name in ("photographs", "PHOTOGRAPHS"):
            (folder / name).symlink_to(data / "BCCD/JPEGImages")
        shutil.copy(photographs[0], folder / "photograph.jpg")
        (folder / "IMAGES").symlink_to(digits)
        shutil.copy(digits / "annotations.json", folder)
        (folder / "exported").mkdir()
        for name in ("hypernet_R_18", "config"):
            shutil.copy(DIGITS_MODEL, folder / f"exported/{name}.onnx")
        (folder / "my_config.yaml").write_text(config)
        (folder / "output/my_model").mkdir(parents=True)
        (folder / "output/my_model/config.yaml").write_text(own.dump())
        results = {"bccd_test": {"bbox": {"AP": 50.0, "AP50": 90.0, "AP75": 60.0}}}
        for run in ("h1", "h2", "f1", "f2"):
            (folder / "output" / run).mkdir(parents=True)
            (folder / "output" / run / "results.json").write_text(json.dumps(results))
            (folder / "output" / run / "config.yaml").write_text(run_config)
        results = ROOT / "docs/results"
        shutil.copy(results / "inference_VGG16_600x1000.json", folder / "inference.json")
        shutil.copy(results / "training_R_18.json", folder / "training.json")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
        monkeypatch.chdir(folder)

    return make


def write_weights(config: str, opts: list[str]) -> None:
    """The file that MODEL.WEIGHTS names among ``opts``, with random weights."""
    from detectron2.modeling import build_model

    from hypernet_d2.data.datasets import bccd
    from hypernet_d2.engine import setup_cfg

    if "MODEL.WEIGHTS" not in opts:
        return
    cfg = setup_cfg(argparse.Namespace(config_file=config, opts=opts))
    Path(cfg.MODEL.WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
    checkpoint = {"model": build_model(cfg).state_dict()}
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(bccd.CLASSES):
        checkpoint["class_names"] = list(bccd.CLASSES)
    torch.save(checkpoint, cfg.MODEL.WEIGHTS)


# What demo/walkthrough.py takes if no config is named: the model of make demo.
DEMO_CONFIG = "configs/Digits-Detection/hypernet_R_18_demo.yaml"
DEMO_WEIGHTS = ["MODEL.WEIGHTS", "output/demo/model_final.pth"]
# Not tools/benchmark.py, which tests/cli/test_benchmark.py runs with small models, nor demo/web.py,
# which serves until it is interrupted.
SCRIPTS = (
    "train_net.py",
    "demo/contact_sheet.py",
    "demo/demo.py",
    "demo/walkthrough.py",
    "tools/compare.py",
    "tools/export_model.py",
    "tools/suggest_windows.py",
    "tools/visualize_data.py",
    "-m hypernet_d2",
)
# Placeholders, large models, eight GPUs, missing data, and the above: only parsed.
NOT_RUN = (
    "...",
    "<",
    "VGG16",
    "R_50",
    "--num-gpus",
    "R_18_sample",
    "benchmark",
    "web",
    "--engine ray",
    "hypernet_d2 push",
    "hypernet_d2 report",
    "hypernet_d2 push",
    "hypernet_d2 serve",
    "--engine",
)
SLOW = (
    "train --data",
    "--schedule",
    "export_model.py",
    "walkthrough.py",
    "Digits-Parts",
    "KEYPOINT_ON",
)
RUN = [
    pytest.param(*c.values, id=c.id, marks=[pytest.mark.slow] * any(w in c.id for w in SLOW))
    for c in WITH_OPTIONS
    if c.id.startswith(SCRIPTS) and not any(w in c.id for w in NOT_RUN)
]


WITHOUT_OPTIONS = {"tools/visualize_data.py", "inspect-data"}


@pytest.mark.detectron2
@pytest.mark.parametrize("words", RUN)
def test_command_runs(words, workplace, catalogs, tmp_path, monkeypatch):
    """With the smallest model, and one iteration of training."""
    workplace(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        args = parse(words, patch)
    if hasattr(args, "opts") and {words[0], words[2]}.isdisjoint(WITHOUT_OPTIONS):
        tiny = [*map(str, TINY), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
        if "--size" in words:
            tiny += ["INPUT.MIN_SIZE_TEST", "240"]
        write_weights(args.config_file or DEMO_CONFIG, [*(args.opts or DEMO_WEIGHTS), *tiny])
        flagged = {"demo/demo.py", "tools/suggest_windows.py", "detect", "suggest-windows"}
        needs_flag = flagged & {words[0], words[2]}
        words = [*words, *(["--opts"] if needs_flag and "--opts" not in words else []), *tiny]
    try:
        start(words, monkeypatch)
    except SystemExit as end:
        assert not end.code


def test_only_the_script_whose_optional_package_is_missing_is_left_out(monkeypatch, tmp_path):
    script = tmp_path / "script.py"
    for package, outcome in (("gradio", pytest.skip.Exception), ("numpi", ModuleNotFoundError)):
        monkeypatch.setitem(sys.modules, package, None)
        script.write_text(f"import {package}")
        with pytest.raises(outcome, match=package):
            parse([str(script), "--help"], monkeypatch)


@pytest.mark.parametrize("words", PYTHON_COMMANDS)
def test_script_exists(words):
    assert words[0].startswith("-") or (ROOT / words[0]).is_file()


@pytest.mark.parametrize("words", commands("make"))
def test_make_target_exists(words):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert words[0] in targets or "=" in words[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_code_compiles(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    for code in blocks(page, "python"):
        ast.parse(code)


@pytest.fixture
def config_reference() -> dict:
    return runpy.run_path(str(ROOT / "tools/config_reference.py"))


def test_configuration_reference_is_up_to_date(config_reference):
    """If this fails: python tools/config_reference.py"""
    assert (ROOT / "docs/CONFIG.md").read_text() == config_reference["reference"]()


@pytest.mark.detectron2
def test_configuration_reference_has_every_key_with_its_default(config_reference):
    from detectron2.config import CfgNode, get_cfg

    def leaves(node: CfgNode, name: str) -> dict:
        found = {}
        for key, value in node.items():
            path = f"{name}.{key}"
            found |= leaves(value, path) if isinstance(value, CfgNode) else {path: value}
        return found

    cfg = get_cfg()
    hypernet_d2.add_hypernet_config(cfg)
    keys = config_reference["read_keys"]((ROOT / "hypernet_d2/config.py").read_text())
    documented = {key.name: ast.literal_eval(key.default) for key in keys}
    assert documented == leaves(cfg.MODEL.HYPERNET, "MODEL.HYPERNET")


def test_a_key_without_a_comment_is_refused(config_reference):
    source = "def add_hypernet_config(cfg):\n    # Why.\n    hyper.A = 1\n    hyper.B = 2\n"
    with pytest.raises(ValueError, match="MODEL.HYPERNET.B has no comment"):
        config_reference["read_keys"](source)


def test_documentation_stays_short():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert sum(len(page.read_text().split()) for page in pages) <= 9000


def test_one_version_everywhere():
    version = hypernet_d2.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_workflow_runs_the_pythons_and_the_ruff_that_the_package_asks_for():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]
    setup = (ROOT / "setup.py").read_text()
    assert f'python_requires=">={pythons[0]}"' in setup
    (minor,) = re.findall(r"ruff>=(\d+\.\d+)", setup)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = (repo for repo in hooks if repo["repo"].endswith("/ruff-pre-commit"))
    assert ruff["rev"].startswith(f"v{minor}.")
