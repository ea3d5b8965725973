"""Compare the metrics of an index on the latents of one release."""

from __future__ import annotations

import argparse

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.evaluation.metric_table import compare_metrics, comparison_text
from pipeline.release import asked_manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare-metrics`."""
    parser.add_argument("--channel", metavar="NAME", help="the channel; by default that of the config, or `stable`")
    parser.add_argument("--release", metavar="RELEASE_ID", help="a certain release, instead of the current one")
    parser.add_argument(
        "--category", metavar="COLUMN", help="what says that two items are alike; by default the config's"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which items ask (default 0)")


def run(arguments: Arguments) -> Outcome:
    """Measure every metric and mask that the release's latents allow; writes nothing."""
    options, config = arguments.options, load_light(arguments)
    store = config.store.open()
    manifest = asked_manifest(store, options.release, options.channel or config.publish.channel)
    category = options.category or (config.catalogue or {}).get("category")
    scores = compare_metrics(store, manifest, category=category, seed=options.seed)
    head = (
        f"{manifest.release_id} ({manifest.model_kind}, {manifest.latent_dim} latents), in per cent; * its own metric"
    )
    details = {"metric": manifest.metric, "category": category, "scores": [score.row() for score in scores]}
    text = f"{head}\n{comparison_text(scores)}"
    return Outcome(release=manifest.release_id, reason="compared", details=details, text=text)
