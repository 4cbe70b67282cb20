"""Trunks of timm with TensorFlow's padding."""

import pytest
import torch

from tests.helpers import captures

pytestmark = [pytest.mark.detectron2, captures]


def test_a_trunk_with_same_padding_is_captured_for_any_size_and_stays_the_same():
    pytest.importorskip("timm")
    from hypernet_d2.export.padding import fix_same_padding
    from hypernet_d2.modeling.backbone.timm_backbone import TimmBackbone

    torch.manual_seed(0)
    trunk = TimmBackbone("tf_efficientnet_lite0", out_features=["s4", "s32"]).eval()
    images = [torch.randn(1, 3, *size) for size in ((64, 96), (32, 128), (96, 32))]
    with torch.no_grad():
        expected = [trunk(image) for image in images]
        fix_same_padding(trunk)
        sides = {
            2: 32 * torch.export.Dim("rows", max=8),
            3: 32 * torch.export.Dim("columns", max=8),
        }
        program = torch.export.export(trunk, (images[0],), dynamic_shapes=(sides,), strict=False)
        found = [trunk(image) for image in images]
        captured = program.module()(images[0])
    for one, other in zip(expected, found, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(captured["s32"], expected[0]["s32"], atol=1e-5, rtol=1e-5)
