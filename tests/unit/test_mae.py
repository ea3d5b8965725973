"""The masked autoencoder: patches as einops cuts them, what the encoder and the loss look at, attention as torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models import Batch, Step
from pipeline.models.backbones.hog import hog
from pipeline.models.backbones.vit import Block, ViT, as_map, patchify, positions
from pipeline.models.export import export_encoder
from pipeline.models.mae import MAE, MAEConfig, masked_error, number_masked, random_order, rows

SIZE = 32
STEP = Step(0, 1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def photos(number: int = 5, size: int = SIZE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)


def make(size: int = SIZE, **values: object) -> MAE:
    torch.manual_seed(0)
    return MAE(MAEConfig.model_validate({"width": 16, "heads": 2, "depth": 2, "decoder_width": 8, **values}), size)


# --- patches and masks


@pytest.mark.parametrize(("size", "patch"), [(32, 4), (28, 7), (36, 6)])
def test_patches_are_those_of_einops(size: int, patch: int) -> None:
    pictures = photos(size=size) / 255.0
    expected = rearrange(pictures, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
    assert torch.equal(patchify(pictures, patch), expected)
    channel_first = rearrange(pictures, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)
    assert not torch.equal(patchify(pictures, patch), channel_first)
    tokens = torch.arange(2 * 9 * 4.0).view(2, 9, 4)
    assert torch.equal(as_map(tokens), rearrange(tokens, "b (h w) c -> b c h w", h=3))


@pytest.mark.parametrize(("share", "expected"), [(0.75, 48), (0.5, 32), (0.6, 38), (0.01, 1)])
def test_the_mask_takes_exactly_its_share_of_every_photo(
    share: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(mask=share)
    assert model.num_masked == number_masked(64, share) == expected
    seen: list[Tensor] = []

    def noted(outputs: Tensor, targets: Tensor, masked: Tensor) -> Tensor:
        seen.append(masked)
        return masked_error(outputs, targets, masked)

    monkeypatch.setattr("pipeline.models.mae.masked_error", noted)
    model(Batch(photos()), STEP)
    assert torch.equal(seen[0].sum(dim=1), torch.full((5,), expected))
    assert len({tuple(row) for row in seen[0].tolist()}) == 5


def test_every_patch_is_masked_equally_often() -> None:
    torch.manual_seed(0)
    first = random_order(20_000, 16, torch.device("cpu"))[:, :4]  # a quarter is seen
    shares = torch.bincount(first.flatten(), minlength=16) / 20_000
    assert shares == pytest.approx(torch.full((16,), 0.25), abs=5 * (0.25 * 0.75 / 20_000) ** 0.5)


def test_a_share_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="masks 0 of 4"):
        number_masked(4, 0.1)
    with pytest.raises(ConfigError, match="masks 4 of 4"):
        number_masked(4, 0.9)


# --- what the loss looks at


def parts_of(model: MAE, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs, targets and mask of one forward pass."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pipeline.models.mae.masked_error", lambda *given: kept.append(given) or torch.zeros(()))
        torch.manual_seed(3)
        model(Batch(images), STEP)
    return kept[0]


def test_only_masked_patches_count() -> None:
    outputs, targets, masked = parts_of(make(), photos())
    error = masked_error(outputs, targets, masked)
    assert error.item() == pytest.approx((outputs - targets)[masked].double().square().mean().item(), rel=1e-6)
    moved = targets + 5.0 * ~masked[:, :, None]
    assert torch.equal(masked_error(outputs, moved, masked), error)
    assert masked_error(outputs, targets + 5.0 * masked[:, :, None], masked) > error + 1.0
    # The known wrong version, an error over all patches, sees the change.
    wrong = (outputs - moved).square().mean() - (outputs - targets).square().mean()
    assert wrong > 1.0


def test_the_mean_of_two_workers_gradients_is_that_of_all_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every photo has as many masked patches as any other, so that DDP's average needs no weights."""
    order = random_order(6, 64, torch.device("cpu"))
    gradients = []
    for mine in (slice(6), slice(3), slice(3, 6)):
        monkeypatch.setattr("pipeline.models.mae.random_order", lambda *_, mine=mine: order[mine])
        model = make()
        model(Batch(photos(6)[mine]), STEP).total.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))  # type: ignore[union-attr]
    whole, first, second = gradients
    torch.testing.assert_close((first + second) / 2, whole, rtol=1e-4, atol=1e-6)
    assert (first - whole).abs().max() > 1e-3


def test_the_encoder_sees_nothing_of_masked_patches() -> None:
    model, images = make(), photos()
    outputs, _, masked = parts_of(model, images)
    noise = photos(seed=9)
    where = masked.view(len(masked), 1, SIZE // 4, SIZE // 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(parts_of(model, torch.where(where, noise, images))[0], outputs, rtol=0, atol=0)
    other = parts_of(model, torch.where(where, images, noise))[0]
    assert (other - outputs).abs().max() > 1e-3


def test_targets_are_patches_of_mean_0_and_variance_1() -> None:
    model = make()
    pictures = photos() / 255.0
    found = model.targets(pictures)
    patches = rearrange(pictures.double(), "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4).numpy()
    spread = np.sqrt(patches.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found, (patches - patches.mean(axis=2, keepdims=True)) / spread, atol=1e-5)
    assert torch.equal(model.targets(torch.ones(1, 3, SIZE, SIZE)), torch.zeros(1, 64, 48))  # a flat patch: no noise
    assert torch.equal(make(normalise=False).targets(pictures), patchify(pictures, 4))


def test_gradients_as_target_are_those_of_the_patch() -> None:
    pictures = photos() / 255.0
    found = make(target="hog").targets(pictures)
    assert torch.equal(as_map(found), hog(pictures, 4, 9))


# --- the variant of one token


@pytest.mark.parametrize("decoder", ["cls", "masked"])
def test_gradients_reach_patches_only_in_the_masked_decoder(decoder: str) -> None:
    model = make(decoder=decoder)
    tokens = torch.randn(2, 65, 16, requires_grad=True)
    order = random_order(2, 64, tokens.device)
    outputs = model.decoder.from_whole(tokens) if decoder == "cls" else model.decoder(tokens[:, :17], order)
    outputs.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, 0].abs().sum() > 0
    assert (tokens.grad[:, 1:].abs().sum() > 0) == (decoder == "masked")


@pytest.mark.slow
def test_one_token_sees_and_answers_for_all_patches() -> None:
    model = make(decoder="cls")
    assert parts_of(model, photos())[2].all()
    assert model.latent_dim == 16
    latents = model.eval().encode(photos()).mean
    torch.testing.assert_close(latents, model.encoder(model.encoder.tokens(photos() / 255.0))[:, 0])
    export_encoder(model.eval())  # it compares with torch itself


def test_the_latents_are_the_mean_of_the_patches() -> None:
    model = make().eval()
    expected = model.encoder(model.encoder.tokens(photos() / 255.0))[:, 1:].mean(dim=1)
    torch.testing.assert_close(model.encode(photos()).mean, expected)
    torch.testing.assert_close(
        as_map(model.encoder.norm(model.maps(photos() / 255.0)[-1].flatten(2).mT)).mean(dim=(2, 3)), expected
    )


def test_a_reduced_read_out_is_fitted_and_kept() -> None:
    model = make(read_out={"pool": "map", "cells": 2, "dims": 3, "whiten": True}).eval()
    assert model.fits
    with pytest.raises(ConfigError, match="not fitted"):
        model.encode(photos())
    with torch.no_grad():
        model.fit([Batch(photos(20)), Batch(photos(20, seed=1))])
        vectors = model.encode(torch.cat([photos(20), photos(20, seed=1)])).mean
    torch.testing.assert_close(vectors.T.cov(), torch.eye(3), rtol=0, atol=1e-3)
    twin = make(read_out={"pool": "map", "cells": 2, "dims": 3, "whiten": True}).eval()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.encode(photos()).mean, model.encode(photos()).mean)


# --- the transformer


def test_a_block_is_torchs_encoder_layer() -> None:
    torch.manual_seed(0)
    block = Block(16, 4)
    for layer in block.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.weight, 1.0, 0.2)
            nn.init.normal_(layer.bias, 0.0, 0.2)
    oracle = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    attention = oracle.self_attn
    assert attention.in_proj_weight is not None
    assert attention.in_proj_bias is not None
    pairs = [
        (attention.in_proj_weight, block.queries_keys_values.weight),
        (attention.in_proj_bias, torch.zeros(48)),
        (attention.out_proj.weight, block.attended.weight),
        (attention.out_proj.bias, block.attended.bias),
        (oracle.norm1.weight, block.before_attention.weight),
        (oracle.norm1.bias, block.before_attention.bias),
    ]
    for theirs, ours in zip((oracle.norm2, oracle.linear1, oracle.linear2), (0, 1, 3), strict=True):
        layer = block.layers[ours]
        pairs += [(theirs.weight, layer.weight), (theirs.bias, layer.bias)]  # type: ignore[arg-type]
    with torch.no_grad():
        for to, source in pairs:
            to.copy_(source)
    tokens = torch.randn(3, 11, 16)
    torch.testing.assert_close(block(tokens), oracle(tokens), rtol=1e-5, atol=1e-5)


def test_the_order_of_tokens_means_nothing() -> None:
    torch.manual_seed(0)
    network = ViT(SIZE, patch=4, width=16, depth=2, heads=2)
    tokens = network.tokens(photos(2) / 255.0)
    order = random_order(2, 64, tokens.device)
    first, second = network(tokens), network(rows(tokens, order))
    torch.testing.assert_close(second[:, 0], first[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second[:, 1:], rows(first[:, 1:], order), rtol=1e-5, atol=1e-5)
    # Without their positions the patches of a photo could be in any order: the positions are what tells.
    assert (network(tokens - network.places + network.places.flip(0))[:, 0] - first[:, 0]).abs().max() > 1e-3


def test_positions_are_those_of_the_papers_code() -> None:
    """As get_2d_sincos_pos_embed of facebookresearch/mae, written with numpy."""
    grid, width = 5, 24

    def line(places: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4.0))
        out = np.einsum("m,d->md", places.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    columns, lines = np.meshgrid(np.arange(grid), np.arange(grid))
    expected = np.concatenate([line(columns), line(lines)], axis=1)
    np.testing.assert_allclose(positions(grid, width), expected, rtol=0, atol=1e-6)
    assert len(torch.unique(positions(16, 16), dim=0)) == 256


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch is 5"):
        make(patch=5)
    with pytest.raises(ConfigError, match="width is 18"):
        make(width=18)
    with pytest.raises(ConfigError, match="3 heads"):
        make(heads=3)


def test_half_precision_gives_the_error_in_float32() -> None:
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        total = model(Batch(photos()), STEP).total
        latents = model.encode(photos()).mean
    assert total.dtype == latents.dtype == torch.float32
    assert torch.isfinite(total)


@pytest.mark.slow
def test_masked_patches_are_learnt_from_those_seen() -> None:
    """A photo of one colour is known from a few of its patches."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 1, 1), dtype=torch.uint8).repeat(1, 1, 16, 16)
    model = make(size=16, normalise=False, width=32, decoder_width=32)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    curve = []
    for _ in range(100):
        optimiser.zero_grad()
        total = model(Batch(images), STEP).total
        total.backward()
        optimiser.step()
        curve.append(total.item())
    guessing = (images / 255.0).var().item()  # the error of a decoder that knows the mean colour only
    assert np.mean(curve[-10:]) < 0.2 * guessing
