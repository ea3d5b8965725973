"""Compare the metrics of an index on the latents of one release."""

from __future__ import annotations

from jobs.command import Arguments, Outcome
from jobs.options import CHANNEL, RELEASE, option, takes
from jobs.place import open_place
from pipeline.evaluation.metric_table import compare_metrics, comparison_text
from pipeline.release import asked_manifest

add_arguments = takes(
    CHANNEL,
    RELEASE,
    option("--category", metavar="COLUMN", help="what says that two items are alike; by default the config's"),
    option("--seed", metavar="N", type=int, default=0, help="which items ask (default 0)"),
)


def run(arguments: Arguments) -> Outcome:
    """Measure every metric and mask that the release's latents allow; writes nothing."""
    options, place = arguments.options, open_place(arguments)
    manifest = asked_manifest(place.store, options.release, place.channel)
    category = options.category or (place.config.catalogue or {}).get("category")
    scores = compare_metrics(place.store, manifest, category=category, seed=options.seed)
    head = (
        f"{manifest.release_id} ({manifest.model_kind}, {manifest.latent_dim} latents), in per cent; * its own metric"
    )
    details = {"metric": manifest.metric, "category": category, "scores": [score.row() for score in scores]}
    text = f"{head}\n{comparison_text(scores)}"
    return Outcome(release=manifest.release_id, reason="compared", details=details, text=text)
