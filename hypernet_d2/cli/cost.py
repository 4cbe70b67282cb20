"""What a model costs, whatever it runs on."""

from __future__ import annotations

from detectron2.utils.analysis import FlopCountAnalysis
from torch import Tensor, nn

__all__ = ["count_flops", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """The number of its parameters; a model on the device "meta" is enough."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, image: Tensor) -> float:
    """The multiply-adds that fvcore counts when a detector sees one image, (3, H, W) in 0 to 255.

    The model is in eval mode. What its regions cost depends on how many it proposes.
    """
    analysis = FlopCountAnalysis(model, [{"image": image}])
    analysis.set_op_handle("aten::baddbmm_", _baddbmm_flops)
    # Both name most of the operators and modules of any detector.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total()


def _baddbmm_flops(inputs: list, outputs: list) -> int:
    # fvcore has a handle for bmm, but none for the one that adds to what is there.
    (batch, rows, inner), (_, _, columns) = (i.type().sizes() for i in inputs[1:3])
    return batch * rows * inner * columns
