"""Two processes over Gloo do what one process does with the same total batch."""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import TINY, tiny_cfg, write_voc

pytestmark = [pytest.mark.detectron2, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
ITERATIONS = 10

# Nothing random but the order of the images, which the processes share between them:
NOTHING_RANDOM = [
    "INPUT.RANDOM_FLIP", "none",
    "MODEL.HYPERNET.BOX_HEAD.DROPOUT", 0.0,
    # every window and every region is used, not a sample, nor the best ones;
    "MODEL.HYPERNET.PROPOSALS.SIZES", [16, 32],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1000,
    "MODEL.RPN.POSITIVE_FRACTION", 1.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", 1000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", 1000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
    # so all images have the same number of regions, and the mean over the regions of a batch is
    # the mean of the processes' means;
    "MODEL.RPN.NMS_THRESH", 1.0,
    # and no statistics over the images that a process happens to see, as BatchNorm's are.
    "MODEL.RESNETS.NORM", "GN",
    "MODEL.ROI_BOX_HEAD.NORM", "",
]  # fmt: skip


def options(output) -> list:
    return ["DATASETS.TRAIN", ("shared_out",), "DATASETS.TEST", (), "OUTPUT_DIR", str(output),
            "MODEL.ROI_HEADS.NUM_CLASSES", 2, "SOLVER.STEPS", (), "SEED", 3]  # fmt: skip


def register(root: Path) -> None:
    from hypernet_d2.data import register_voc_style

    register_voc_style("shared_out", root / "set", "all", ["square", "bar"])


def record_losses(root: Path, name: str) -> None:
    """Train, and write each iteration's losses, averaged over the processes."""
    from detectron2.engine import HookBase
    from detectron2.utils import comm
    from detectron2.utils.env import seed_all_rng

    from hypernet_d2.engine import Trainer

    rows = []

    class Recorder(HookBase):
        def after_step(self):
            latest = self.trainer.storage.latest()
            rows.append({k: v for k, (v, _) in latest.items() if "loss" in k})

    cfg = tiny_cfg(
        *options(root / name), *NOTHING_RANDOM, "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.01,
    )  # fmt: skip
    (root / name).mkdir(exist_ok=True)
    seed_all_rng(cfg.SEED + comm.get_rank())  # as detectron2's default_setup does
    trainer = Trainer(cfg)
    trainer.register_hooks([Recorder()])
    trainer.train()
    if comm.is_main_process():
        (root / name / "losses.json").write_text(json.dumps(rows))


def train_alternating(root: Path) -> None:
    """What ``train_net.py --schedule alternating`` does in one of the processes."""
    from hypernet_d2.cli.train import run as main

    words = [*TINY, *options(root / "alternating"), "SOLVER.MAX_ITER", 1]
    config = str(ROOT / "configs/BCCD-Detection/hypernet_R_18.yaml")
    main(
        argparse.Namespace(
            config_file=config, opts=list(map(str, words)), resume=False, eval_only=False,
            num_gpus=2, schedule="alternating",
        )
    )  # fmt: skip


def in_two_processes(root: Path) -> None:
    from detectron2.utils import comm

    torch.set_num_threads(2)
    register(root)
    record_losses(root, "two")
    train_alternating(root)
    (root / f"threads{comm.get_rank()}").write_text(str(torch.get_num_threads()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the runs of one process and of two."""
    from detectron2.engine import launch

    root = tmp_path_factory.mktemp("distributed")
    write_voc(root / "set", count=8)
    register(root)
    record_losses(root, "one")
    launch(in_two_processes, 2, dist_url="auto", args=(root,))
    return root


def test_losses_of_two_processes_equal_those_of_one(trained):
    one, two = (json.loads((trained / name / "losses.json").read_text()) for name in ("one", "two"))
    assert len(one) == len(two) == ITERATIONS
    assert set(one[0]) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "total_loss"}
    for name in one[0]:
        losses = np.array([[row[name] for row in rows] for rows in (one, two)])
        # The losses change by far more than the tolerance, as images and weights do.
        assert np.ptp(losses[0]) > 1e-3, name
        np.testing.assert_allclose(losses[1], losses[0], atol=1e-4, rtol=0, err_msg=name)


def test_the_trainers_of_the_steps_keep_the_number_of_threads(trained):
    assert [(trained / f"threads{rank}").read_text() for rank in range(2)] == ["2", "2"]


def test_two_processes_train_in_alternation(trained):
    from detectron2.modeling import build_model

    from hypernet_d2.checkpoint import HyperNetCheckpointer

    folder = trained / "alternating"
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2))
    HyperNetCheckpointer(model, strict=True).load(str(folder / "model_final.pth"))
    assert (folder / "step5_detection/model_final.pth").is_file()
    assert not [name for _, _, names in os.walk(folder) for name in names if ".part" in name]
