"""Fixed padding for the convolutions of timm that compute theirs from the size of the image."""

from __future__ import annotations

from torch import nn

__all__ = ["fix_same_padding"]


def fix_same_padding(module: nn.Module) -> None:
    """Replace each ``Conv2dSame`` of timm in ``module`` by a padding and a stock convolution.

    TensorFlow's "SAME" padding depends on the size of the map, which torch.export would carry as a
    formula that grows from layer to layer, so that a capture takes hours. It is constant for maps
    whose sides are multiples of the stride, as they are in an image that is padded to multiples of
    the trunk's coarsest stride.
    """
    try:
        from timm.layers import Conv2dSame
    except ImportError:
        return
    for parent in list(module.modules()):
        for name, conv in list(parent.named_children()):
            if isinstance(conv, Conv2dSame):
                setattr(parent, name, _with_fixed_padding(conv))


def _with_fixed_padding(conv: nn.Conv2d) -> nn.Sequential:
    left_right, top_bottom = (
        (total // 2, total - total // 2)
        for total in (
            max((conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1 - conv.stride[axis], 0)
            for axis in (1, 0)
        )
    )
    stock = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    stock.weight, stock.bias = conv.weight, conv.bias
    return nn.Sequential(nn.ZeroPad2d((*left_right, *top_bottom)), stock)
