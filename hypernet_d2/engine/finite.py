"""Numbers that are not finite: training stops at once, and says where they came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from hypernet_d2.checkpoint.safe_checkpoint import first_non_finite

__all__ = [
    "find_non_finite",
    "finite_steps",
    "raise_if_not_finite",
]


@contextlib.contextmanager
def finite_steps(trainer: SimpleTrainer) -> Iterator[None]:
    """Within it, ``trainer.run_step`` names what is not finite.

    Each process looks at its own losses, after the forward pass: no gradient of them is computed,
    and no process learns from them.

    Raises:
        FloatingPointError: losses, or proposals in training, are not finite. It names the
            iteration, the images of the batch and the first thing that is not finite.
    """
    step = _Step()
    handles = [
        trainer.model.register_forward_pre_hook(step.before),
        trainer.model.register_forward_hook(step.after),
    ]
    try:
        yield
    except FloatingPointError as error:
        precision = getattr(trainer, "precision", None)  # of the trainer for mixed precision
        cause = find_non_finite(trainer.model, step.batch, step.rng, precision)
        names = ", ".join(str(x.get("file_name", "?")) for x in step.batch)
        raise FloatingPointError(
            f"training stopped at iteration {trainer.iter}: {error}\n"
            f"Images of the batch: {names}\n"
            f"First that is not finite: {cause}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


class _Step:
    """What the model was given in a step, and whether its losses are finite."""

    def __init__(self):
        self.batch: list[dict] = []
        self.rng: list[Tensor] = []

    def before(self, model: nn.Module, inputs: tuple) -> None:
        self.batch = inputs[0]
        self.rng = [torch.get_rng_state()]
        if torch.cuda.is_initialized():
            self.rng.append(torch.cuda.get_rng_state())

    def after(self, model: nn.Module, inputs: tuple, losses: Mapping[str, Tensor] | Tensor) -> None:
        losses = {"loss": losses} if isinstance(losses, Tensor) else losses
        if not torch.isfinite(sum(loss.detach() for loss in losses.values())):
            values = ", ".join(f"{name} is {loss.item():g}" for name, loss in losses.items())
            raise FloatingPointError(f"the losses are not finite: {values}")


def raise_if_not_finite(module: nn.Module, inputs: tuple, output: Any) -> None:
    """A forward hook for inference, where stock code leaves out what is not finite, unsaid.

    Raises:
        FloatingPointError: the output of the module is not finite.
    """
    if not _is_finite(output):
        raise FloatingPointError(
            f"the output of {type(module).__name__} is not finite for this image: its numbers "
            "overflow, or a weight is broken"
        )


def find_non_finite(
    model: nn.Module,
    batch: list[dict],
    rng: list[Tensor] | None = None,
    precision: torch.dtype | None = None,
) -> str:
    """What is the first not to be finite: an input, a parameter, or the output of a module.

    The modules are found by a second forward pass, which has the same random numbers.

    Args:
        model: in training, as it was when its losses were not finite.
        batch: what it was given.
        rng: states of the random number generators, of the CPU and of the current GPU, that the
            first pass began with; None for the present ones.
        precision: of autocast; None for none.
    """
    for one in batch:
        for key in ("image", "instances", "proposals"):
            if not _is_finite(one.get(key)):
                return f"{key!r} of {one.get('file_name', 'the batch')}, as the mapper gives it"
    model = getattr(model, "module", model)  # of DistributedDataParallel
    # The statistics of normalisations do not count: the first pass has spoilt them.
    weight = first_non_finite(model.named_parameters())
    if weight is not None:
        return f"{weight}, since the step before or the weights that training began with"
    if comm.get_world_size() > 1 and any("SyncBatch" in type(m).__name__ for m in model.modules()):
        return "unknown, as the modules that normalise over all processes cannot be run in one"
    with torch.no_grad(), torch.random.fork_rng(), EventStorage():
        if rng:
            torch.set_rng_state(rng[0])
        if rng and len(rng) > 1:
            torch.cuda.set_rng_state(rng[1])
        device = next(model.parameters()).device.type
        with torch.autocast(device, dtype=precision, enabled=precision is not None):
            return _first_module(model, batch)


def _first_module(model: nn.Module, batch: list[dict]) -> str:
    running: list[str] = []
    found: list[str] = []

    def leave(module: nn.Module, output: Any) -> None:
        name = running.pop()
        if not found and not _is_finite(output):
            found.append(f"the output of {_describe(name, module)}")

    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: running.append(name)),
            module.register_forward_hook(lambda module, _, output: leave(module, output)),
        ]
    try:
        model(batch)
    except FloatingPointError:
        if not found:  # detectron2 looks at the proposals while they are made
            found.append(
                f"a value within {_describe(running[-1], model.get_submodule(running[-1]))}"
            )
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "unknown: a second pass over the same batch was finite"


def _describe(name: str, module: nn.Module) -> str:
    return f"{name or 'the model'} ({type(module).__name__})"


def _is_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(value))


def _tensors(value: Any) -> Iterable[Tensor]:
    """Those with fractions in a structure of dicts, lists and detectron2's Instances and Boxes."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _tensors(inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _tensors(inside)
    elif hasattr(value, "get_fields"):
        yield from _tensors(value.get_fields())
    elif isinstance(getattr(value, "tensor", None), Tensor):
        yield from _tensors(value.tensor)
