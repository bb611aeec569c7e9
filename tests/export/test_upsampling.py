"""The way up of the exported detector: convolutions split over the two maps they join, without the doubled one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra 'train')")

from spine_export.onnx import JOINED, folded  # noqa: E402
from spine_export.upsampling import SplitUpBlock  # noqa: E402
from spine_training.detector.model import LevelHeatmapNet, UpBlock  # noqa: E402


@pytest.fixture
def net() -> LevelHeatmapNet:
    """A net whose batch norms have met something."""
    torch.manual_seed(3)
    net = LevelHeatmapNet().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
    return net


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (10, 7)])
def test_a_split_block_computes_what_the_joined_one_does(size):
    torch.manual_seed(5)
    block = UpBlock(6, 4, 8).eval()
    block.norm_1 = block.norm_2 = torch.nn.Identity()
    block.conv_1.bias = torch.nn.Parameter(torch.randn(8))
    below, beside = (
        torch.randn(2, 6, *size),
        torch.randn(2, 4, 2 * size[0], 2 * size[1]),
    )
    with torch.inference_mode():
        wanted, found = block(below, beside), SplitUpBlock(block)(below, beside)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_folded_net_answers_as_the_trained_one(net):
    slices = torch.rand(2, 1, 96, 64)
    ready = folded(net)
    assert [isinstance(up, SplitUpBlock) for up in ready.up] == [True] * (
        len(net.up) - JOINED
    ) + [False] * JOINED
    with torch.inference_mode():
        torch.testing.assert_close(ready(slices), net(slices), rtol=1e-4, atol=1e-4)


def test_batch_norms_come_first():
    with pytest.raises(TypeError, match="fold"):
        SplitUpBlock(UpBlock(6, 4, 8))
