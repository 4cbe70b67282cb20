"""Parameters and FLOPs of a model, counted by fvcore."""

from __future__ import annotations

from detectron2.utils.analysis import FlopCountAnalysis, parameter_count
from torch import Tensor, nn

__all__ = ["count_flops", "count_parameters"]


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; the model may be on the device "meta"."""
    return parameter_count(model)[""]


def count_flops(model: nn.Module, image: Tensor) -> float:
    """The multiply-adds of a detector in eval mode on one image, (3, H, W) in 0 to 255.

    Those of the RoI heads depend on the number of proposals.
    """
    analysis = FlopCountAnalysis(model, [{"image": image}])
    analysis.set_op_handle("aten::baddbmm_", _baddbmm_flops)
    # These warnings would list most of the operators and modules of any detector.
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total()


def _baddbmm_flops(inputs: list, outputs: list) -> int:
    # fvcore has a handle for bmm, but none for its variant that adds to a tensor in place.
    (batch, rows, inner), (_, _, columns) = (i.type().sizes() for i in inputs[1:3])
    return batch * rows * inner * columns
