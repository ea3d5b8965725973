"""What a model is worth on the held-out photos: every rank adds up its own, the sums meet once at the end.

Ranks may hold different numbers of photos, or none: a mean over ranks of means would be wrong, and no rank may wait
for another in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import CodebooksError, NotReconstructing
from ..losses.ssim import ssim
from ..models.base import Batch, Model, Step, to_float
from .ranks import Ranks, random_state, restore_random, seed_rank

_SSIM_WINDOW = 11
_PICTURES = 8  # photos in the pictures for TensorBoard
_ACTIVE = 0.01  # variance of a posterior's mean from which a dimension is active (Burda et al. 2015, section 5.2)


@dataclass(frozen=True, slots=True)
class Validation:
    """measures: `validation/<name>` to a mean over all held-out photos; empty where none is held out.

    categories: mean squared error by category, largest first; empty where fewer than two are known. pictures: uint8
    [3, 2 H, n W], originals above their reconstructions, on a rank that has photos and a model that reconstructs.
    """

    measures: Mapping[str, float] = field(default_factory=dict)
    categories: Mapping[str, float] = field(default_factory=dict)
    pictures: Tensor | None = None

    def state(self) -> dict[str, dict[str, float]]:
        """Return what a checkpoint keeps: all but the pictures."""
        return {"measures": dict(self.measures), "categories": dict(self.categories)}


def validate(
    model: Model, batches: Iterable[Batch], ranks: Ranks, *, step: Step, seed: int, labels: Sequence[str] = ()
) -> Validation:
    """Measure a model on this rank's held-out photos and return the measures over all ranks; every rank calls this.

    In evaluation mode, without gradients, in fp32 and with noise drawn from `seed`; the random generators and the mode
    are then as they were. step: which step's loss is measured. labels: names of the condition rows from 2 on. Measures:
    `total` and the parts of the loss, `mse` (per value in 0..1), `ssim`, `worst_category_mse` and `best_category_mse`,
    `active_units` of Gaussian latents, `used_codes` and `perplexity` of codes (of two levels `top/used_codes` and so
    on), each where the model has them; a part of the loss that bears another measure's name gives way. Raises
    CodebooksError, on every rank alike, when a measure is not a finite number.
    """
    random, training = random_state(ranks.device), model.training
    seed_rank(seed, ranks.rank)
    model.eval()
    try:
        with torch.no_grad():
            sums = _Sums(model, step, ranks.device)
            for batch in batches:
                sums.add(batch)
            found = _measured(sums.over(ranks), labels)
    finally:
        model.train(training)
        restore_random(random, ranks.device)
    broken = {name: value for name, value in found.measures.items() if not math.isfinite(value)}
    if broken:
        shown = ", ".join(f"{name} {value:g}" for name, value in found.measures.items())
        raise CodebooksError(
            f"{', '.join(broken)} is not a number ({shown}); lower train.learning_rate, set train.grad_clip or use "
            "precision fp32"
        )
    return Validation(found.measures, found.categories, sums.pictures)


class _Sums:
    """Sums over this rank's photos by name, float64; in the same order on every rank."""

    def __init__(self, model: Model, step: Step, device: torch.device) -> None:
        self._model = model
        self._step = step
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self.pictures: Tensor | None = None

    def add(self, batch: Batch) -> None:
        """Add a batch."""
        if len(batch.images):
            self._add(self._here(batch), len(batch.images))

    def over(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return the sums over all ranks, on every rank."""
        if not self._sums:
            # A batch that counts nothing: a rank without photos then knows the same names as its peers.
            self._add(self._here(self._model.blank()), 0)
        # How many codes and categories there are is what the largest seen anywhere says.
        lengths = ranks.largest([len(values) for values in self._sums.values()])
        padded = [
            torch.nn.functional.pad(values, (0, length - len(values)))
            for values, length in zip(self._sums.values(), lengths, strict=True)
        ]
        both = torch.split(ranks.sum(torch.cat(padded)).cpu(), lengths)
        return dict(zip(self._sums, both, strict=True))

    def _here(self, batch: Batch) -> Batch:
        return batch.each(lambda values: values.to(self._device))

    def _add(self, batch: Batch, photos: int) -> None:
        self._note("photos", torch.full((1,), float(photos), device=self._device))
        # Not the module's own call: that one may be compiled, for batches of one size in training mode.
        losses = self._model.forward(replace(batch, images=self._model.augmented(batch.images)), self._step)
        for name, value in {"total": losses.total, **losses.parts}.items():
            self._note(f"loss/{name}", photos * value.double().view(1))
        if self._model.has_log_var or self._model.num_latent_codes:
            latents = self._model.encode_batch(batch)
            if self._model.has_log_var:
                means = latents.mean[:photos].double()
                self._note("means", means.sum(dim=0))
                self._note("squares", means.square().sum(dim=0))
            if latents.codes is not None:
                for level, codes in self._model.code_levels(latents.codes).items():
                    self._note(f"codes/{level}", torch.bincount(codes[:photos].flatten()))
        if not batch.images.numel():
            return  # a model of features or codes, which has seen no pictures
        try:
            made = self._model.reconstruct(batch.images, batch.condition)[:photos].float()
        except NotReconstructing:
            return
        self._add_pictures(Batch(batch.images[:photos], batch.condition), made)

    def _add_pictures(self, batch: Batch, made: Tensor) -> None:
        target = to_float(batch.images)
        errors = (made - target).double().square().flatten(1).mean(dim=1)
        self._note("mse", errors.sum().view(1))
        side = target.shape[-1]
        likeness = ssim(made, target, window=min(_SSIM_WINDOW, side - 1 + side % 2))
        self._note("ssim", likeness.double().sum().view(1))
        rows = torch.zeros(len(errors), dtype=torch.int64, device=errors.device)
        if batch.condition is not None:
            rows = batch.condition[: len(errors)]
        self._note("category_errors", torch.bincount(rows, weights=errors))
        self._note("category_photos", torch.bincount(rows))
        if self.pictures is None and len(errors):
            self.pictures = _above_each_other(target[:_PICTURES], made[:_PICTURES])

    def _note(self, name: str, values: Tensor) -> None:
        values = values.to(torch.float64)
        if (before := self._sums.get(name)) is not None:
            length = max(len(before), len(values))
            values = torch.nn.functional.pad(before, (0, length - len(before))) + torch.nn.functional.pad(
                values, (0, length - len(values))
            )
        self._sums[name] = values


def _measured(sums: Mapping[str, Tensor], labels: Sequence[str]) -> Validation:
    """Return the measures that sums over all photos make."""
    photos = float(sums["photos"])
    if photos == 0:
        return Validation()
    found = {name.removeprefix("loss/"): float(value) / photos for name, value in sums.items() if "loss/" in name}
    found |= {name: float(sums[name]) / photos for name in ("mse", "ssim") if name in sums}
    if "means" in sums:
        variance = sums["squares"] / photos - (sums["means"] / photos).square()
        # A posterior that is no number is not an inactive one: it must show.
        found["active_units"] = float((variance > _ACTIVE).sum()) if bool(variance.isfinite().all()) else math.nan
    for name, uses in sums.items():
        if name.startswith("codes/"):
            level = name.removeprefix("codes/")
            shares, prefix = uses / uses.sum(), f"{level}/" if level else ""
            found[f"{prefix}used_codes"] = float((shares > 0).sum())
            found[f"{prefix}perplexity"] = float((-torch.special.xlogy(shares, shares).sum()).exp())
    categories: dict[str, float] = {}
    if "mse" in sums and int((sums["category_photos"] > 0).sum()) > 1:
        names = ["<none>", "<unknown>", *labels]
        both = enumerate(zip(sums["category_errors"].tolist(), sums["category_photos"].tolist(), strict=True))
        means = [(names[row] if row < len(names) else f"row {row}", error / n) for row, (error, n) in both if n]
        categories = dict(sorted(means, key=lambda pair: -pair[1]))
        found["worst_category_mse"], *_, found["best_category_mse"] = categories.values()
    return Validation({f"validation/{name}": value for name, value in found.items()}, categories)


def _above_each_other(originals: Tensor, made: Tensor) -> Tensor:
    """Return pictures [n, 3, H, W] in 0..1 as one, uint8 [3, 2 H, n W] on the CPU: originals above what was made."""
    rows = torch.cat([torch.cat([*originals], dim=2), torch.cat([*made], dim=2)], dim=1)
    return (rows.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
