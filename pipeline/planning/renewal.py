"""A night that would train or encode everything anew: said before anything is computed, with why and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..release import Manifest, read_log
from ..release.tables import read_table
from ..runs import open_run
from ..storage import Store
from .standing import Standing, parent_asked

_RUNS_READ = 30  # results of the channel's newest runs that are searched for how long a training took
_SHOWN = 12


class ChangedSetting(BaseModel):
    """A setting whose value differs between the parent's bundle and what is asked now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    before: Any
    now: Any


class Renewal(BaseModel):
    """What is done anew although the channel has a release, and why.

    trains: also a model; else only all photos are encoded. changed: the settings that differ from the parent's, None
    where those are no longer on the store. photos: the parent's, refused ones too. fetched: those that live and whose
    pixels are not stored as this model sees them, so that they are fetched once more. seconds: by stage, as far as a
    run of the channel (measured_by) has measured that stage; of the training as many epochs as are asked for now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    trains: bool
    changed: tuple[ChangedSetting, ...] | None
    photos: int
    fetched: int = 0
    seconds: dict[str, float]
    measured_by: dict[str, str]

    def lines(self) -> list[str]:
        """Return it as lines for people."""
        does = "TRAINS A NEW MODEL AND ENCODES EVERY PHOTO ANEW" if self.trains else "ENCODES EVERY PHOTO ANEW"
        return [
            f"THIS NIGHT {does}: about {self.photos:,} photos; nothing of release {self.parent} is carried over",
            *(f"  {line}" for line in self._why()),
            f"  cost: {self._cost()}",
            *self._again(),
        ]

    def _again(self) -> Iterator[str]:
        if self.fetched:
            yield f"  {self.fetched:,} photos are fetched again: their pixels are not stored (images.keep, images.size)"

    def refusal(self) -> str:
        """Return what is said to a user who has not asked for it."""
        lines = "\n".join(self.lines())
        return (
            f"{lines}\nNothing was computed, and the channel stays as it is. If it is meant, run it with --retrain, or "
            "set train.when (`missing`: whenever a setting has changed) so that later nights need not ask; if it is "
            "not, put the settings back"
        )

    def _why(self) -> Iterator[str]:
        if self.changed is None:
            yield "the settings of the parent's run are no longer on the store, so nothing tells what differs"
        elif not self.changed:
            yield (
                "no setting differs from the parent's: the period of train.when is over, or the key of its bundle was "
                "deleted"
            )
        else:
            for setting in self.changed[:_SHOWN]:
                yield f"{setting.name}: {setting.before!r} in the parent's bundle, now {setting.now!r}"
            if len(self.changed) > _SHOWN:
                yield f"and {len(self.changed) - _SHOWN} more settings"

    def _cost(self) -> str:
        stages = ["train", "encode"] if self.trains else ["encode"]
        said = [
            f"{stage} about {duration(self.seconds[stage])} (by the rate of run {self.measured_by[stage]})"
            if stage in self.seconds
            else f"{stage} unknown, no recent run of this channel has measured it"
            for stage in stages
        ]
        return "; ".join(said)


def renewal_of(standing: Standing, store: Store) -> Renewal | None:
    """Return what a night does anew; None for one that carries on, for a sample, and for a channel's first release."""
    parent, asked = standing.parent, standing.asked
    if parent is None or asked.sample is not None or parent.sample is not None:
        return None
    trains = standing.model_id is None
    if not trains and not standing.encode_all:
        return None
    before = parent_asked(store, parent)
    changed = None if before is None else _changed(before.settings(), asked.settings())
    if parent.transform_id != standing.transform_id and not any(
        setting.name.startswith("images.") for setting in changed or ()
    ):
        transform = ChangedSetting(name="transform", before=parent.transform_id, now=standing.transform_id)
        changed = (*(changed or ()), transform)
    photos = parent.counts.get("photos", 0) + parent.counts.get("refused", 0)
    rates, measured_by = _rates(store, str(standing.channel))
    work = {"train": photos * asked.train.epochs, "encode": photos}
    return Renewal(
        parent=parent.release_id,
        trains=trains,
        changed=changed,
        photos=photos,
        fetched=_fetched(standing, store, parent),
        seconds={stage: round(work[stage] / rate, 1) for stage, rate in rates.items()},
        measured_by=measured_by,
    )


def _fetched(standing: Standing, store: Store, parent: Manifest) -> int:
    """Return how many of the parent's living photos have no pixels that can be encoded again."""
    items = read_table(store, parent, "items", columns=["pixels_part"])
    return int(items["pixels_part"].null_count if parent.transform_id == standing.transform_id else items.num_rows)


def duration(seconds: float) -> str:
    """Return a time as people say it, in one unit."""
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _changed(before: dict[str, Any], now: dict[str, Any]) -> tuple[ChangedSetting, ...]:
    """Return the settings that differ; of another kind of model only the kind, its own settings being others."""
    other_kind = before["model.kind"] != now["model.kind"]
    names = [name for name in now if not (other_kind and name.startswith("model.") and name != "model.kind")]
    if not other_kind:
        names += [name for name in before if name not in now]
    return tuple(
        ChangedSetting(name=name, before=before.get(name), now=now.get(name))
        for name in names
        if before.get(name) != now.get(name)
    )


def _rates(store: Store, channel: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return the newest measured photos per second of training and encoding, and which runs measured them."""
    rates: dict[str, float] = {}
    measured_by: dict[str, str] = {}
    for run in dict.fromkeys(entry.run for entry in reversed(read_log(store, channel, last=_RUNS_READ))):
        result = open_run(store, run).read_result() or {}
        for stage, rate in result.get("photos_per_s", {}).items():
            if stage in ("train", "encode") and stage not in rates and rate:
                rates[stage], measured_by[stage] = rate, run
        if len(rates) == 2:
            break
    return rates, measured_by
