"""The experiments of bench_claims.py, each with the claim it looks at, its trainings and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from table_cells import table as cells_of

RENDERED = "rendered"  # the catalogue that render.render_catalogue makes

Result = dict[str, Any]
Cell = Callable[[Result], str]


def number(key: str, digits: int = 3, scale: float = 1.0) -> Cell:
    """Return what shows a value of a result; – where there is none."""
    return lambda result: f"{result[key] * scale:,.{digits}f}" if result.get(key) is not None else "–"


@dataclass(frozen=True)
class Variant:
    """One training. settings: in which it differs from the preset. levels: of a quantizer `fsq` in place of its own.
    share: of the photos of the commonest category, where only some are trained on. pretrained: whether an autoencoder's
    convolutions begin it.
    """

    name: str
    preset: str
    settings: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    epochs: int = 2
    measure: str = "gaussian"
    catalogue: str = "fashion_mnist"
    share: float | None = None
    pretrained: bool = False


@dataclass(frozen=True)
class Experiment:
    """claim: what the seed says. columns: head and cell of each; see `rows` for tables that are made otherwise."""

    claim: str
    variants: tuple[Variant, ...]
    columns: dict[str, Cell]
    rows: Callable[[dict[str, Result]], list[list[str]]] | None = None
    note: str = ""


# --- the tables' cells


KNN, PROBE = number("knn", 1, 100), number("probe", 1, 100)
MSE, SSIM, DETAIL = number("mse", 4), number("ssim"), number("high_frequency", 2)


def active(result: Result) -> str:
    return f"{result['active_units']:.0f} of {result['dims']}"


def used_codes(result: Result) -> str:
    return f"{result['used_codes']:.0f} of {result['num_codes']}"


def side(result: Result) -> str:
    cells = round(result["cells"] ** 0.5)
    return f"{cells} x {cells}"


def category(which: Callable[..., str]) -> Cell:
    """Return what shows the category that `which`, min or max, picks by its error."""

    def cell(result: Result) -> str:
        means = result["categories"]
        name = which(means, key=means.__getitem__)
        return f"{name} {means[name]:.4f}"

    return cell


def common(result: Result) -> str:
    return f"{result['common']} {result['categories'][result['common']]:.4f}"


def others_to_common(result: Result) -> str:
    others = [mse for name, mse in result["categories"].items() if name != result["common"]]
    return f"{sum(others) / len(others) / result['categories'][result['common']]:.2f}"


def ratio(result: Result) -> str:
    return f"{max(result['categories'].values()) / min(result['categories'].values()):.2f}"


def loss_rows(results: dict[str, Result]) -> list[list[str]]:
    """Return the held-out losses after each epoch, and when the first variant's last loss was reached."""
    goal = next(iter(results.values()))["epoch_loss"][-1]
    rows = []
    for name, result in results.items():
        losses = result["epoch_loss"]
        reached = next((str(epoch) for epoch, loss in enumerate(losses, 1) if loss <= goal), f"not in {len(losses)}")
        seconds = f"{result['train_cpu_s'] + result.get('before_cpu_s', 0.0):.0f}"
        rows.append([name, ", ".join(f"{loss:.2f}" for loss in losses), reached, seconds])
    return rows


def probe_rows(results: dict[str, Result]) -> list[list[str]]:
    """Return what each way to describe a photo tells of its colour and category."""
    return [
        [way, f"{found['numbers']}", f"{found['colour'] * 100:.1f}", f"{found['category'] * 100:.1f}"]
        for result in results.values()
        for way, found in result["probes"].items()
    ]


# --- the experiments


def vae10(name: str, *settings: str) -> Variant:
    return Variant(name, "vae10_fashion_mnist", settings)


def grid(channels: str, num_codes: int) -> Variant:
    settings = (f"model.channels={channels}", f"model.quantizer.num_codes={num_codes}")
    return Variant("moving averages", "vqvae_fashion_mnist", settings, epochs=1, measure="codes")


def fsq(channels: str, *levels: int) -> Variant:
    settings = (f"model.channels={channels}",)
    return Variant("levels (fsq)", "vqvae_fashion_mnist", settings, levels, 1, "codes")


BCE = vae10("bce")
LOSSES = {
    "mse": ("model.target.loss=mse",),
    "ssim": ("model.target.loss=ssim",),
    "ssim, not scaled": ("model.target.loss=ssim", f"model.image_weight={1 / 784}"),  # grey, 28 x 28: C * H * W values
}
MSE_VAE = vae10("mse", *LOSSES["mse"])
HELD_OUT = ("train.validation=0.1",)

EXPERIMENTS = {
    "collapse": Experiment(
        "000: codes easily collapse; random restarts solve it, at the cost of codes that are alike",
        tuple(
            Variant(name, "vqvae_fashion_mnist", settings, measure="codes")
            for name, settings in {
                "normal start, no restarts": ("model.quantizer.init=normal", "model.quantizer.restart_threshold=0"),
                "normal start, restarts": ("model.quantizer.init=normal",),
                "k-means start, restarts (default)": (),
            }.items()
        ),
        {
            "used codes": used_codes,
            "perplexity": number("perplexity", 1),
            "near-duplicates %": number("codebook_near_duplicate_share", 1, 100),
            "quantisation error": number("codebook_quantisation_error", 4),
            "MSE": MSE,
        },
    ),
    "grid": Experiment(
        "000: MSE alone yields blurry images unless the grid's cells are really small",
        (
            grid("[64]", 2),
            grid("[32, 64]", 16),
            grid("[32, 64, 64]", 1024),
            fsq("[32, 64]", 4, 4),
            fsq("[32, 64, 64]", 8, 8, 8, 8, 8, 8, 4),
        ),
        {
            "cells": side,
            "codes": number("num_codes", 0),
            "bits a photo": number("bits", 0),
            "MSE": MSE,
            "SSIM": SSIM,
            "detail": DETAIL,
        },
        note="196 bits a photo where that can be had. 3 x 3 cells would need 3.6 million codes: the codebook has 1,024 "
        "(90 bits), the levels make 2^20 (180 bits). Detail: variance of the Laplacian, of the photos' own.",
    ),
    "codes_probe": Experiment(
        "000: codes seem to capture shape and colour only (rendered catalogue; probe accuracy, %)",
        (
            Variant(
                "vqvae",
                "vqvae_fashion_mnist",
                ("images.size=64", "model.channels=[16, 32, 64]", "train.batch_size=64", "train.learning_rate=0.002"),
                epochs=30,
                measure="codes_probe",
                catalogue=RENDERED,
            ),
        ),
        {"numbers": str, "colour": str, "category": str},
        probe_rows,
    ),
    "pretraining": Experiment(
        "000: convolutions and latents together train slowly; pretrained convolutions help",
        (
            Variant("VAE from scratch", "vae_fashion_mnist", HELD_OUT, epochs=3, measure="pretraining"),
            Variant(
                "after an autoencoder", "vae_fashion_mnist", HELD_OUT, epochs=3, measure="pretraining", pretrained=True
            ),
            Variant("from scratch, as long in all", "vae_fashion_mnist", HELD_OUT, epochs=6, measure="pretraining"),
        ),
        {
            "held-out loss after each epoch": str,
            "epochs to the first row's last": str,
            "CPU seconds, both trainings": str,
        },
        loss_rows,
    ),
    "imbalance": Experiment(
        "000: reconstructions are only good for the commonest category",
        tuple(
            Variant(name, "vae_fashion_mnist", settings, epochs=9, measure="imbalance", share=share)
            for name, settings, share in (
                ("nine tenths of one category", (), 0.9),
                ("the same, train.balance", ("train.balance=true",), 0.9),
                ("as many of each (as many photos)", (), 0.1),
            )
        ),
        {
            "photos, not the common": lambda result: f"{result['photos']:,}, {result['rare']:,}",
            "MSE": MSE,
            "common": common,
            "worst": category(max),
            "best": category(min),
            "worst to best": ratio,
            "others to common": others_to_common,
        },
    ),
    "condition": Experiment(
        "000: a VAE that is told the category needs not repeat it in its latents",
        (vae10("VAE-10"), Variant("CVAE-10", "cvae_fashion_mnist")),
        {
            "category from z % (linear)": PROBE,
            "untold %": number("probe_untold", 1, 100),
            "k-NN %": KNN,
            "MSE": MSE,
            "pictures changed by another category %": number("changed", 1, 100),
            "mean change": number("change", 4),
            "seen as the one told %": number("told_seen", 1, 100),
            "as their own %": number("own_seen", 1, 100),
        },
        note="A chance probe has 10 %. Changed: by more than 0.01 of the scale in the mean. Seen: by the k nearest "
        "photos' pixels. The CVAE is told the photo's own category to encode it; "
        "untold: it is not.",
    ),
    "losses": Experiment(
        "001: out of the box BCE works best, then MSE; SSIM does not train",
        (BCE, *(vae10(name, *settings) for name, settings in LOSSES.items())),
        {"SSIM": SSIM, "MSE": MSE, "KL, nats": number("kl", 2), "active units": active, "k-NN %": KNN},
    ),
    "options": Experiment(
        "001: rebalancing the loss does not help; normalising every image hurts SSIM, four to five times",
        (
            BCE,
            vae10("bce, rebalance", "model.rebalance=true"),
            vae10("bce, group norm", "model.norm=group"),
            MSE_VAE,
            vae10("mse, per-image normalisation", *LOSSES["mse"], "model.per_image_normalisation=true"),
        ),
        {"SSIM": SSIM, "MSE": MSE, "KL, nats": number("kl", 2), "k-NN %": KNN},
        note="The SSIM is that of pictures with the photo's own mean and spread put back.",
    ),
    "sizes": Experiment(
        "001: latents of 20 or 100 numbers change nothing",
        (vae10("2", "model.latent_dim=2"), vae10("10"), *(vae10(f"{n}", f"model.latent_dim={n}") for n in (20, 100))),
        {"active units": active, "KL, nats": number("kl", 2), "MSE": MSE, "SSIM": SSIM, "k-NN %": KNN},
    ),
}


def table(experiment: Experiment, results: list[Result | None]) -> str:
    """Return a Markdown table with its heading."""
    named = [(v.name, result) for v, result in zip(experiment.variants, results, strict=True) if result is not None]
    heads = ["", *experiment.columns]
    if experiment.rows is not None:
        lines = experiment.rows(dict(named)) if named else []
    else:
        lines = [[name, *(cell(result) for cell in experiment.columns.values())] for name, result in named]
    text = [f"**{experiment.claim}**", "", cells_of(heads, lines)]
    missing = len(results) - len(named)
    text += ["", *([experiment.note] if experiment.note else []), *([f"({missing} not measured)"] if missing else [])]
    return "\n".join(text).rstrip() + "\n"


def tables(runs: Sequence[Result], names: Sequence[str] = tuple(EXPERIMENTS)) -> str:
    """Return the tables of experiments, by the rows that each result says it answers."""
    found = {place: run for run in runs for place in run["answers"]}
    return "\n".join(
        table(EXPERIMENTS[name], [found.get(f"{name}/{place}") for place in range(len(EXPERIMENTS[name].variants))])
        for name in names
    )
