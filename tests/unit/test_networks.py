"""Networks: shapes at every size, norms, maps, and what starting weights do to a signal."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from pipeline.models import Model, build_model
from pipeline.models.backbones import ConvDecoder, ConvEncoder, Network, Norm, build_networks, initialise
from pipeline.models.backbones.conv import resized
from pipeline.models.vae import VAEConfig

NETWORKS: list[Network] = ["conv", "fc", "fc_conv", "fcn"]
NORMS: list[Norm] = ["none", "group", "batch"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(("image_size", "out_channels", "out_size"), [(28, 1, 28), (32, 3, 32), (28, 9, 7), (64, 5, 9)])
@pytest.mark.parametrize("network", NETWORKS)
def test_features_and_outputs_have_the_shapes_they_name(
    network: Network, image_size: int, out_channels: int, out_size: int, in_channels: int
) -> None:
    encoder, decoder = build_networks(
        network,
        image_size,
        channels=(4, 8, 12),
        hidden=(20, 30),
        norm="none",
        in_channels=in_channels,
        out_channels=out_channels,
        out_size=out_size,
    )
    features = encoder(torch.rand(2, in_channels, image_size, image_size))
    assert features.shape == (2, *encoder.shape)
    outputs = decoder(torch.rand(2, *decoder.in_shape))
    assert outputs.shape == (2, out_channels, out_size, out_size)
    assert outputs.dtype == torch.float32


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("out_size", [2, 3, 5, 7, 10, 14, 20, 28])
def test_a_decoder_has_only_the_stages_its_size_needs(norm: Norm, out_size: int) -> None:
    decoder = ConvDecoder(28, (4, 8, 12), out_channels=6, out_size=out_size, norm=norm)
    assert decoder(torch.rand(2, 12, 3, 3)).shape == (2, 6, out_size, out_size)
    stages = sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in decoder.stages)
    assert stages == sum(size <= out_size for size in (7, 14, 28))  # the maps are 3, 7, 14, 28
    assert not any(isinstance(layer, torch.nn.SiLU) for layer in decoder.stages[-1:])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", ["conv", "fcn"])
def test_maps_are_what_the_encoder_makes_on_its_way(network: Network, norm: Norm) -> None:
    torch.manual_seed(0)
    config = VAEConfig(network=network, channels=(4, 8, 12), norm=norm, hidden=(16, 16))
    model = build_model(config, image_size=28).eval()
    pictures = torch.rand(2, 3, 28, 28)
    maps = model.maps(pictures)
    assert [tuple(one.shape[1:]) for one in maps] == [(4, 14, 14), (8, 7, 7), (12, 3, 3)]
    convolutions = model.encoder if network == "conv" else model.encoder.convolutions
    torch.testing.assert_close(maps[-1], convolutions(pictures), rtol=0, atol=0)


def test_group_normalisation_looks_at_one_picture_and_batch_normalisation_at_all() -> None:
    pictures = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for norm, alone in (("none", True), ("group", True), ("batch", False)):
        encoder = ConvEncoder(16, (8, 8), norm=norm)  # type: ignore[arg-type]
        same = torch.allclose(encoder(pictures)[:1], encoder(pictures[:1]), atol=1e-5)
        assert same == alone, norm


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_model_with_norms_encodes_the_same_in_either_mode_and_keeps_its_statistics(norm: Norm) -> None:
    torch.manual_seed(0)
    model = build_model(VAEConfig(channels=(8, 8), norm=norm), image_size=16)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    expected = model.eval().encode(images).mean
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    torch.testing.assert_close(model.encode(images).mean, expected, rtol=0, atol=0)
    torch.testing.assert_close(model.encode(images[:1]).mean, expected[:1], rtol=1e-5, atol=1e-5)
    model.reconstruct(images)
    assert model.encoder.training
    assert model.decoder.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("network", NETWORKS)
def test_starting_weights_keep_the_signal_s_size(network: Network) -> None:
    torch.manual_seed(0)
    encoder, decoder = build_networks(
        network, 28, channels=(16, 32, 64), hidden=(200, 200), norm="none", in_channels=3, out_channels=3, out_size=28
    )
    for part in (encoder, decoder):
        initialise(part)
    # He's variance 2 / inputs is for ReLU, which halves a signal's power; SiLU keeps a little less than half.
    features = encoder(torch.randn(20, 3, 28, 28))
    assert 0.1 < features.square().mean().sqrt() < 1.5
    outputs = decoder(torch.randn(20, *decoder.in_shape))
    assert 0.1 < outputs.std() < 3.0


def test_a_kernel_as_large_as_the_picture_starts_by_its_inputs_not_by_its_area() -> None:
    torch.manual_seed(0)
    layer = torch.nn.ConvTranspose2d(100, 3, 28)
    initialise(layer)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.02)
    usual = torch.nn.ConvTranspose2d(100, 3, 4, 2, 1)
    initialise(usual)
    assert usual.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.05)


def test_resized_enlarges_smoothly_and_averages() -> None:
    maps = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert resized(maps, 1).item() == 1.5
    expected = torch.nn.functional.interpolate(maps, size=(5, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resized(maps, 5), expected)
    assert resized(maps, 2) is maps


def parameters_of(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_seed_s_networks_have_its_sizes() -> None:
    # github.com/snakers4/playing_with_vae: VAEBaseline and VAEBaselineConv on 28 x 28 grey, 10 latents.
    dense = build_model(VAEConfig(network="fc", hidden=(400, 400), grey=True, latent_dim=10), image_size=28)
    assert parameters_of(dense) == (784 * 400 + 400) + 2 * (400 * 10 + 10) + (10 * 400 + 400) + (400 * 784 + 784)
    whole = build_model(VAEConfig(network="fc_conv", hidden=(32, 118), grey=True, latent_dim=10), image_size=28)
    assert parameters_of(whole) == (784 * 32 + 32) + 2 * (32 * 10 + 10) + (10 * 118 + 118) + (118 * 784 + 1)
