"""Trains and evaluates; the command line is that of detectron2's tools/train_net.py.

``--schedule alternating`` trains in the six steps of the paper (3.4) instead of end to end.
``--eval-only --eval-proposals`` evaluates the proposals alone.

``--data PATH`` without a config looks at your data, chooses a config for it, trains, and evaluates
the best weights on the validation and the test split. The config is written to ``OUTPUT_DIR``.
"""

import argparse
import logging
import os
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from hypernet_d2.checkpoint import OUTPUT_FILES, HyperNetCheckpointer
from hypernet_d2.engine import (
    Trainer,
    add_data_argument,
    check_no_earlier_run,
    check_test_time_augmentation,
    check_tiles,
    check_writable,
    launch,
    setup_cfg,
    train_alternating,
    write_results,
    write_split,
)
from hypernet_d2.engine.alternating import STEPS
from hypernet_d2.modeling.proposal_generator import proposal_evaluation_cfg

from . import own_data
from .arguments import CommandParser, add_config_name_argument


def run(args: argparse.Namespace):
    """What each process does: evaluate, or train and then evaluate."""
    cfg = setup_cfg(args)
    check_test_time_augmentation(cfg)
    check_tiles(cfg)
    alternating = args.schedule == "alternating"
    if comm.is_main_process():
        if not args.eval_only and not args.resume:
            steps = [step.name for step in STEPS] if alternating else []
            check_no_earlier_run(cfg.OUTPUT_DIR, steps)
        check_writable(cfg.OUTPUT_DIR)
    comm.synchronize()
    if not args.eval_only:
        write_split(cfg)
    cfg.freeze()
    set_up_logging(cfg, args)
    if args.eval_only:
        return evaluate(cfg, args.resume, proposals=args.eval_proposals)
    if alternating:
        results = evaluate(train_alternating(cfg, resume=args.resume), resume=False)
        write_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    if not getattr(args, "chosen", False):
        return trainer.train()
    if sys.stderr.isatty() and comm.is_main_process():
        trainer.register_hooks([own_data.ProgressBar()])
    trainer.train()
    return own_data.finish(cfg, args.config_file, evaluate)


def set_up_logging(cfg: CfgNode, args: argparse.Namespace) -> None:
    """detectron2's ``default_setup``, but config, environment and model go to the log file only."""
    rank = comm.get_rank()
    # detectron2 keeps the loggers of equal arguments, so that default_setup gets this one.
    logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank)
    screen = screen_handlers(logger)
    for handler in screen:
        handler.setLevel(logging.WARNING)
        handler.addFilter(is_no_traceback_of_training)
    default_setup(cfg, args)
    ours = setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="hypernet_d2")
    for handler in [*screen, *screen_handlers(ours)]:
        handler.setLevel(logging.INFO)
    ours.info("config, environment and model: see %s", os.path.join(cfg.OUTPUT_DIR, "log.txt"))


def screen_handlers(logger: logging.Logger) -> list[logging.Handler]:
    return [h for h in logger.handlers if getattr(h, "stream", None) is sys.stdout]


def is_no_traceback_of_training(record: logging.LogRecord) -> bool:
    """A logging filter: the command line reports the error that ends a training by itself."""
    return not (record.exc_info and record.name == "detectron2.engine.train_loop")


def evaluate(cfg: CfgNode, resume: bool, proposals: bool = False):
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint of ``OUTPUT_DIR``.

    Args:
        cfg: config of the model.
        resume: see above.
        proposals: evaluate the recall of the model's proposals instead of the AP of its detections.

    Raises:
        ValueError: there are no weights to evaluate.
    """
    last_checkpoint = os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")
    if not cfg.MODEL.WEIGHTS and not (resume and OUTPUT_FILES.isfile(last_checkpoint)):
        raise ValueError(
            "--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume and an OUTPUT_DIR "
            f"with a checkpoint (it is {cfg.OUTPUT_DIR!r})"
        )
    if proposals:
        cfg = proposal_evaluation_cfg(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = HyperNetCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if proposals:
        return Trainer.test_proposals(cfg, model)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and start the processes."""
    argv = sys.argv[1:] if argv is None else argv
    example = "--config Digits-Detection/hypernet_R_18_demo OUTPUT_DIR output/digits"
    if "--eval-only" in argv:
        example += " MODEL.WEIGHTS output/digits/model_final.pth"
    parser = CommandParser(
        __doc__,
        example,
        parents=[default_argument_parser()],
        add_help=False,
    )
    add_config_name_argument(parser)
    parser.add_argument(
        "--schedule",
        choices=("joint", "alternating"),
        default="joint",
        help="joint: end to end in one run; alternating: the six steps of the paper, each of "
        "SOLVER.MAX_ITER iterations",
    )
    parser.add_argument(
        "--eval-proposals",
        action="store_true",
        help="with --eval-only: recall of the proposals, by number, IoU and size of the objects",
    )
    add_data_argument(parser)
    args = parser.parse_args(argv)
    if not args.config_file and not args.data:
        parser.error("expected --data PATH, --config NAME or --config-file FILE")
    if args.eval_proposals and not args.eval_only:
        parser.error("--eval-proposals needs --eval-only")
    if not args.config_file:
        if args.num_machines > 1:
            parser.error("--data chooses a config on one machine; expected --config-file FILE, too")
        own_data.prepare(args)
        args.data, args.chosen = None, not args.eval_only and args.schedule == "joint"
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
