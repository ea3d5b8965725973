"""The small-image ResNet: shapes, the block against torchvision's, signal size, one photo at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.backbones.resnet import Block, ResNet


def pictures(side: int = 28, count: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize(("side", "sides"), [(28, [14, 7, 4]), (32, [16, 8, 4]), (36, [18, 9, 5]), (64, [32, 16, 8])])
def test_maps_halve_rounding_up(norm, side, sides):
    network = ResNet(side, (8, 12, 16), blocks=2, norm=norm)
    found = network.maps(pictures(side))
    assert [tuple(one.shape) for one in found] == [(3, c, s, s) for c, s in zip((8, 12, 16), sides, strict=True)]
    assert torch.equal(network.eval()(pictures(side)), network.maps(pictures(side))[-1])
    assert network.shape == (16, sides[-1], sides[-1])


def test_a_whole_first_stage_and_one_channel():
    network = ResNet(32, (8, 16), in_channels=1, whole_first=True)
    assert [one.shape[-1] for one in network.maps(pictures(32, channels=1))] == [32, 16]
    assert network.shape == (16, 16, 16)


@pytest.mark.parametrize("before", [8, 4])
def test_blocks_are_torchvisions(before):
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    norm_layer = lambda channels: nn.GroupNorm(8, channels)  # noqa: E731
    down = nn.Sequential(nn.Conv2d(before, 16, 1, 2, bias=False), nn.GroupNorm(8, 16))
    oracle = resnet.BasicBlock(before, 16, stride=2, downsample=down, norm_layer=norm_layer)
    ours = Block(before, 16, "group", stride=2)
    theirs = dict(oracle.named_parameters())
    names = {
        "residual.0.weight": "conv1.weight",
        "residual.1.weight": "bn1.weight",
        "residual.1.bias": "bn1.bias",
        "residual.3.weight": "conv2.weight",
        "residual.4.weight": "bn2.weight",
        "residual.4.bias": "bn2.bias",
        "shortcut.0.weight": "downsample.0.weight",
        "shortcut.1.weight": "downsample.1.weight",
        "shortcut.1.bias": "downsample.1.bias",
    }
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name in names:
                parameter.copy_(theirs[names[name]])
            else:
                parameter.zero_()  # biases before a normalisation, which torchvision leaves out
    features = torch.randn(4, before, 15, 15)
    torch.testing.assert_close(ours(features), oracle(features), rtol=1e-5, atol=1e-5)
    oracle(features).square().sum().backward()
    # With channels last, as photos go through: oneDNN's own shortcut from 4 channels ends the process on some machines.
    for _ in range(20):
        ours.zero_grad()
        ours(features.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    for name, parameter in ours.named_parameters():
        if name in names:
            torch.testing.assert_close(parameter.grad, theirs[names[name]].grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_deep_network_keeps_the_signals_size(norm):
    torch.manual_seed(0)
    network = ResNet(64, (16, 16, 16, 16), blocks=6, norm=norm)
    sizes = [one.std().item() for one in network.maps(2 * pictures(64) - 1)]
    assert max(sizes) < 20 * min(sizes)
    unscaled = [stage for stage in network.modules() if isinstance(stage, Block)]
    for block in unscaled:  # the control: sums that nothing divides
        block.scale = 1.0
    if norm == "none":
        sizes = [one.std().item() for one in network.maps(2 * pictures(64) - 1)]
        assert max(sizes) > 50 * min(sizes)


def test_a_photo_is_seen_alone_except_with_batch_norm():
    for norm, alone in (("none", True), ("group", True), ("batch", False)):
        network = ResNet(28, (8, 16), norm=norm)
        whole, first = network(pictures()), network(pictures()[:1])
        assert torch.allclose(whole[:1], first, rtol=1e-4, atol=1e-5) == alone


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"30.*multiple of 4"):
        ResNet(30, (8, 16))
    with pytest.raises(ConfigError, match="at most 3"):
        ResNet(16, (8,) * 4)
    assert ResNet(16, (8,) * 4, whole_first=True).grid == 2
