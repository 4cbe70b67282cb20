"""What the documentation says exists: commands, options, configuration keys, files and links."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import sys
from pathlib import Path
from string import Template

import pytest

import hypernet_d2

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
SHELL_VARIABLES = {"name": "vgg16", "file": "vgg16.pth"}  # of the loop in docs/MODEL_ZOO.md
# What scripts may import that not every installation has (the extras of setup.py).
OPTIONAL = {"gradio", "matplotlib", "onnx", "onnxruntime", "onnxscript", "pycocotools", "sklearn"}
USERS_FILES = {"my_config.yaml", "my_data.py"}  # that docs/CUSTOM_DATA.md has the reader write


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def commands(program: str) -> list:
    """One parameter for each command of the pages that starts with ``program``."""
    found = {}
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text())
        lines = "\n".join(blocks(page, "", "sh", "bash")).replace("\\\n", " ").splitlines()
        inline = [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose)]
        for line in [*lines, *inline]:
            line = Template(line).safe_substitute(SHELL_VARIABLES).strip()
            words = shlex.split(line, comments=True) if line.startswith(program) else []
            if len(words) > 1 and words[0] == program:
                found.setdefault(" ".join(words), pytest.param(words[1:], id=" ".join(words)))
    return list(found.values())


class Parsed(BaseException):
    """Ends a script once it has read its command line; no handler of a script takes it."""


def parse(words: list[str], monkeypatch) -> argparse.Namespace:
    """What the script's own parser makes of the command line; SystemExit where it refuses it."""
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise Parsed(read(self, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "path", [str((ROOT / words[0]).parent), *sys.path])
    try:
        if words[0] == "-m":
            monkeypatch.setattr(sys, "argv", words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            monkeypatch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
            runpy.run_path(sys.argv[0], run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in OPTIONAL:
            pytest.skip(f"{words[0]} needs {package}, which is not installed")
        raise
    raise AssertionError(f"{words[0]} reads no command line")


PYTHON_COMMANDS = [c for c in commands("python") if c.values[0][:2] != ["-m", "pytest"]]
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


@pytest.mark.detectron2
def test_config_of_custom_data_is_one(tmp_path):
    from hypernet_d2.engine import setup_cfg

    (text,) = blocks(ROOT / "docs/CUSTOM_DATA.md", "yaml")
    assert '_BASE_: "configs/' in text
    file = tmp_path / "my_config.yaml"
    file.write_text(text.replace('_BASE_: "', f'_BASE_: "{ROOT}/'))
    cfg = setup_cfg(argparse.Namespace(config_file=str(file), opts=[]))
    assert cfg.DATASETS.TRAIN == ("my_train",) and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3


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
