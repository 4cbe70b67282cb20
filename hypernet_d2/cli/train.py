"""Trains and evaluates; the command line is that of detectron2's tools/train_net.py.

``--schedule alternating`` trains in the six steps of the paper (3.4) instead of end to end.
``--eval-only --eval-proposals`` evaluates the proposals alone.
"""

import argparse

from detectron2.engine import default_argument_parser, default_setup, hooks
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from hypernet_d2.checkpoint import HyperNetCheckpointer
from hypernet_d2.engine import (
    Trainer,
    add_data_argument,
    launch,
    setup_cfg,
    train_alternating,
    write_results,
)
from hypernet_d2.modeling.proposal_generator import proposal_evaluation_cfg

from .arguments import CommandParser, add_config_name_argument


def run(args: argparse.Namespace):
    """One process's work: evaluate, or train and then evaluate."""
    cfg = setup_cfg(args)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="hypernet_d2")
    if args.eval_only:
        return evaluate(cfg, args.resume, proposals=args.eval_proposals)
    if args.schedule == "alternating":
        results = evaluate(train_alternating(cfg, resume=args.resume), resume=False)
        write_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if cfg.TEST.AUG.ENABLED:
        trainer.register_hooks(
            [hooks.EvalHook(0, lambda: trainer.test_with_TTA(cfg, trainer.model))]
        )
    return trainer.train()


def evaluate(cfg, resume: bool, proposals: bool = False):
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint of ``OUTPUT_DIR``.

    With ``proposals`` it is the recall of the model's proposals, not its detections' AP.
    """
    if proposals:
        cfg = proposal_evaluation_cfg(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = HyperNetCheckpointer(model, cfg.OUTPUT_DIR, strict=True)
    if not cfg.MODEL.WEIGHTS and not (resume and checkpointer.has_checkpoint()):
        raise ValueError(
            "--eval-only needs weights: give MODEL.WEIGHTS FILE, or --resume and an OUTPUT_DIR "
            f"with a checkpoint (it is {cfg.OUTPUT_DIR!r})"
        )
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
    parser = CommandParser(
        __doc__,
        "--config Digits-Detection/hypernet_R_18_demo OUTPUT_DIR output/digits",
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
    if not args.config_file:
        parser.error("expected --config NAME or --config-file FILE")
    if args.eval_proposals and not args.eval_only:
        parser.error("--eval-proposals needs --eval-only")
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
