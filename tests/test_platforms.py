"""Other platforms, simulated on this one: what they lack, how they start processes, and paths."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers import write_voc

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).resolve().parents[1]

# Windows lacks these modules and functions, and macOS sigwaitinfo. Both spawn processes.
AS_ON_WINDOWS = """
import os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sigwaitinfo", "sigtimedwait", "pthread_sigmask", "SIGKILL", "SIGHUP", "SIGALRM"):
    delattr(signal, name)
for name in ("fork", "killpg", "getuid", "geteuid", "sysconf"):
    delattr(os, name)
"""
TRAIN = """
import multiprocessing, sys
from tests.helpers import tiny_cfg
from hypernet_d2.data import register_voc_style

register_voc_style("odd", "data", "all", ["square", "bar"])
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from hypernet_d2.engine import Trainer

    cfg = tiny_cfg(
        "DATASETS.TRAIN", ("odd",), "DATASETS.TEST", ("odd",), "MODEL.ROI_HEADS.NUM_CLASSES", 2,
        "DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (),
        "OUTPUT_DIR", sys.argv[1],
    )
    trainer = Trainer(cfg)
    trainer.train()
    assert "AP" in trainer._last_eval_results["bbox"]
    with open(sys.argv[1] + "/config.yaml", "w") as file:
        file.write(cfg.dump())
"""


def python(*arguments, cwd: Path = ROOT) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_imports_without_what_windows_lacks():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "hypernet_d2").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    # The standard library and PyTorch choose by sys.platform, and would miss what is deleted.
    code = f"""
    import concurrent.futures, matplotlib.pyplot, torch, torchvision, torch.onnx, detectron2.engine
    import detectron2.evaluation, detectron2.data, detectron2.modeling, detectron2.checkpoint
    {textwrap.indent(AS_ON_WINDOWS, "    ")}
    import importlib
    for module in {modules}:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:  # an optional package
            assert error.name in ("gradio", "onnx", "onnxruntime", "onnxscript", "pyarrow"), error
    print("passed")
    """
    assert python("-c", textwrap.dedent(code)).endswith("passed\n")


@pytest.mark.slow
def test_training_and_detection_with_spawned_loaders_and_odd_paths(tmp_path):
    folder = tmp_path / "l'été à C:\\data (1)"
    write_voc(folder / "data", count=2)
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    python("train.py", "sortie \\1 é", cwd=folder)
    config = folder / "sortie \\1 é" / "config.yaml"
    assert config.is_file() and (config.parent / "model_final.pth").is_file()
    python(
        ROOT / "demo/demo.py", "--config-file", config, "--data", "train.py",
        "--input", "data/JPEGImages", "--output", "détections \\ 2",
        "--opts", "MODEL.WEIGHTS", config.parent / "model_final.pth", cwd=folder,
    )  # fmt: skip
    drawn = {path.name for path in (folder / "détections \\ 2").iterdir()}
    assert {"000.jpg", "001.jpg"} <= drawn


DEFORMABLE = [
    "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "256",
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]",
]  # fmt: skip
ROTATED = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "MODEL.ROI_HEADS.NAME", "RROIHeads",
    "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES", "[[-30, 0, 30]]",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated",
    "MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 1.0, 1.0, 1.0, 1.0)",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0, 5.0, 1.0)",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "named"),
    [(DEFORMABLE, "DeformConv"), (ROTATED, "ROIAlignRotated, RROIHeads, RRPN: rotated boxes")],
)
def test_a_layer_that_needs_the_compiled_part_is_named_without_it(tmp_path, layers, named):
    write_voc(tmp_path / "data", count=2)
    code = """
    import sys
    sys.modules["detectron2._C"] = None
    from hypernet_d2.data import register_voc_style
    from hypernet_d2_cli import run
    register_voc_style("plain", "data", "all", ["square", "bar"])
    sys.exit(run("hypernet_d2.cli.train", sys.argv[1:]))
    """
    config = ROOT / "configs" / "Digits-Detection" / "hypernet_R_18.yaml"
    options = [
        "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('plain',)", "DATASETS.TEST", "('plain',)",
        "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.WEIGHTS", "", *layers,
    ]  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(
        [*command, "--config-file", str(config), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "detectron2._C" in last and named in last
    assert "Traceback" not in done.stderr
