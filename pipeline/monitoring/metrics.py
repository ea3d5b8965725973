"""A run's metrics in Prometheus' words: every name, its help and its labels stand in one table.

Two groups of series, since a failed night must not take the last success away: those of the *run*, which each run
replaces as a whole (a reason that nothing was refused for tonight is gone), and those of the *channel*, which only a
night that succeeded replaces. All are gauges: a batch job begins at 0 each night, so nothing of it is a counter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..release import ChannelEntry
from .state import Standing

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Family(NamedTuple):
    """One metric. labels: beside those that all of its group have."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


_RUN = "codebooks_run_"
RUN_FAMILIES = (
    Family(f"{_RUN}info", "The run that the other series of its group tell of.", ("run", "release", "version")),
    Family(f"{_RUN}started_timestamp_seconds", "When this attempt of the run began."),
    Family(f"{_RUN}updated_timestamp_seconds", "When the run last showed a sign of life."),
    Family(f"{_RUN}ended_timestamp_seconds", "When the run ended; absent while it works."),
    Family(f"{_RUN}in_progress", "1 while the run works; it stays 1 when the process is killed."),
    Family(f"{_RUN}exit_code", "Exit code: 0 done, 4 refused by a gate, 6 temporary; absent while the run works."),
    Family(f"{_RUN}published", "1 where the run has moved its channel."),
    Family(f"{_RUN}stage_seconds", "Seconds that a stage took so far.", ("stage",)),
    Family(f"{_RUN}stage_photos", "Photos that a stage is done with.", ("stage",)),
    Family(f"{_RUN}stage_planned_photos", "Photos that a stage has to do.", ("stage",)),
    Family(f"{_RUN}stage_photos_per_second", "Photos a second of a stage, since it began.", ("stage",)),
    Family(f"{_RUN}stage_shards", "Shards that a stage is done with.", ("stage",)),
    Family(f"{_RUN}node_photos", "Photos of the shards that a node is done with.", ("stage", "node")),
    Family(f"{_RUN}node_seconds", "Seconds that these shards took its actors, all together.", ("stage", "node")),
    Family(f"{_RUN}plan", "What the plan counted, by its name for it.", ("counted",)),
    Family(f"{_RUN}quarantined_photos", "Photos of the release that cannot be used, by reason.", ("stage", "reason")),
    Family(f"{_RUN}measure", "What was measured of the release, for example its recall.", ("measure",)),
    Family(f"{_RUN}gate_value", "What a gate looked at.", ("gate",)),
    Family(f"{_RUN}gate_limit", "The limit of a gate; absent where it is switched off.", ("gate",)),
    Family(f"{_RUN}gate_passed", "1 where the value keeps the limit, 0 where the gate refused the release.", ("gate",)),
    Family(f"{_RUN}train_steps", "Steps of the training that are done."),
    Family(f"{_RUN}train_planned_steps", "Steps of the training in all."),
    Family(f"{_RUN}train_loss", "Training loss over the last steps."),
    Family(f"{_RUN}train_photos_per_second", "Photos a second of the training, over all workers, recently."),
    Family(f"{_RUN}peak_memory_bytes", "Memory of the driver and its children at most; known at the end."),
    Family(f"{_RUN}monitor_failures", "How often metrics or the message could not be delivered.", ("sink",)),
)
CHANNEL_FAMILIES = (
    Family("codebooks_last_success_timestamp_seconds", "When a refresh of the channel last ended with 0."),
    Family("codebooks_release_created_timestamp_seconds", "When the current release came on the channel."),
    Family("codebooks_release_number", "Number of the current release in the channel's log."),
    Family("codebooks_release_info", "The current release of the channel.", ("release", "made_by")),
)
_Sample = tuple[str, tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Success:
    """A refresh that ended well. at: seconds since 1970; head: the channel's current entry."""

    at: float
    head: ChannelEntry


def run_labels(standing: Standing) -> dict[str, str]:
    """Return the labels of the run's group: which command of which channel, then those of the config."""
    return {"command": standing.named.command, **channel_labels(standing)}


def channel_labels(standing: Standing) -> dict[str, str]:
    """Return the labels of the channel's group."""
    return {"channel": standing.named.channel, **standing.named.labels}


def run_metrics(standing: Standing) -> CollectorRegistry:
    """Return the run's group; a family that nothing is known of is left out."""
    return _registry(RUN_FAMILIES, run_labels(standing), list(_run_samples(standing)))


def channel_metrics(standing: Standing, success: Success) -> CollectorRegistry:
    """Return the channel's group after a night that succeeded."""
    head = success.head
    samples: list[_Sample] = [
        ("codebooks_last_success_timestamp_seconds", (), success.at),
        ("codebooks_release_created_timestamp_seconds", (), head.created.timestamp()),
        ("codebooks_release_number", (), head.number),
        ("codebooks_release_info", (head.release_id, head.reason), 1),
    ]
    return _registry(CHANNEL_FAMILIES, channel_labels(standing), samples)


def text_of(registry: CollectorRegistry) -> bytes:
    """Return metrics in Prometheus' text format."""
    from prometheus_client import generate_latest

    return generate_latest(registry)


def _run_samples(now: Standing) -> Iterator[_Sample]:
    ended, training = now.ended, now.training
    known: dict[str, float | None] = {
        "started_timestamp_seconds": now.began,
        "updated_timestamp_seconds": now.updated,
        "ended_timestamp_seconds": ended.at if ended else None,
        "in_progress": 0 if ended else 1,
        "exit_code": ended.exit_code if ended else None,
        "published": int(ended.published) if ended else 0,
        "train_steps": training.step if training else None,
        "train_planned_steps": training.total_steps if training else None,
        "train_loss": training.loss if training else None,
        "train_photos_per_second": training.images_per_s if training else None,
        "peak_memory_bytes": _peak(now),
    }
    yield f"{_RUN}info", (now.named.run, (ended.release if ended else None) or "", now.named.version), 1
    yield from ((_RUN + name, (), value) for name, value in known.items() if value is not None)
    rates = {
        stage: photos / now.seconds[stage] for stage, photos in now.photos.items() if now.seconds.get(stage, 0.0) > 0
    }
    by_label: dict[str, Mapping[str, float]] = {
        "stage_seconds": now.seconds,
        "stage_photos": now.photos,
        "stage_planned_photos": now.planned,
        "stage_photos_per_second": rates,
        "stage_shards": now.shards,
        "plan": now.changes,
        "measure": now.measures,
        "gate_value": {verdict.name: verdict.value for verdict in now.verdicts},
        "gate_limit": {verdict.name: verdict.limit for verdict in now.verdicts if verdict.limit is not None},
        "gate_passed": {verdict.name: int(verdict.passed or verdict.allowed is not None) for verdict in now.verdicts},
        "monitor_failures": now.failures,
    }
    for name, values in by_label.items():
        yield from ((_RUN + name, (label,), value) for label, value in values.items())
    by_two: dict[str, Mapping[tuple[str, str], float]] = {
        "quarantined_photos": now.refused,
        "node_photos": now.node_photos,
        "node_seconds": now.node_seconds,
    }
    for name, pairs in by_two.items():
        yield from ((_RUN + name, labels, value) for labels, value in pairs.items())


def _peak(now: Standing) -> float | None:
    megabytes = now.finished.details.get("peak_memory_mb") if now.finished else None
    return None if megabytes is None else float(megabytes) * 2**20


def _registry(families: tuple[Family, ...], common: dict[str, str], samples: list[_Sample]) -> CollectorRegistry:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily

    class Group:
        def collect(self) -> Iterator[Any]:
            for family in families:
                gauge = GaugeMetricFamily(family.name, family.help, labels=[*common, *family.labels])
                for name, labels, value in samples:
                    if name == family.name:
                        gauge.add_metric([*common.values(), *labels], value)
                if gauge.samples:
                    yield gauge

    registry = CollectorRegistry()
    registry.register(Group())
    return registry
