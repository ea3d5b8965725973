"""What stands before a night begins: the channel's release, and the bundle that answers what is asked."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from ..images import ImagesConfig, transform_id
from ..models.bundle import find_bundle
from ..release import Manifest, Sample, check_takes_samples, read_head, read_manifest
from ..runs import RUNS
from ..storage import Store
from .asked import Asked
from .resolution import main_transforms
from .settings import NightSettings


@dataclass(frozen=True, slots=True)
class Standing:
    """channel: where the night may publish, None for nowhere; head: that channel's number; parent: its release.

    transforms: what the model sees. model_id: the bundle that answers the train key, None when one has to be trained.
    """

    channel: str | None
    head: int
    parent: Manifest | None
    transforms: tuple[ImagesConfig, ...]
    asked: Asked
    train_key: str
    model_id: str | None

    @property
    def transform_id(self) -> str:
        """Return the id of how photos become pixels."""
        return transform_id(*self.transforms)

    @property
    def encode_all(self) -> bool:
        """Return whether the parent's latents cannot stand beside those that are asked for."""
        parent = self.parent
        if parent is None or parent.model_id != self.model_id or parent.transform_id != self.transform_id:
            return True
        return bool(parent.config.get("encode") != {"precision": self.asked.precision})


def look(
    config: NightSettings, store: Store, *, run: str, limit: int | None, channel: str | None = None, live: bool = False
) -> Standing:
    """Return what stands for a run that takes `limit` items, None for all of the catalogue.

    channel: named on the command line; else a run of the whole catalogue publishes on publish.channel and a sample
    nowhere, with no release to compare it with. A night of another bundle than that of the channel's release goes on
    publish.canary where there is one, and carries on from what is there of its bundle. live: it keeps the bundle of the
    channel's release, also when the period of train.when is over. Raises ConfigError for a sample on a channel of whole
    catalogues, and for `live` where the settings ask for another bundle.
    """
    sample = None if limit is None else Sample(limit=limit, seed=config.train.seed)
    where = channel or (config.publish.channel if sample is None else None)
    if sample is not None and where == config.publish.channel:
        raise ConfigError(
            f"--limit {limit} takes a sample, and channel {where!r} is publish.channel, where the catalogue's own "
            "releases are; name another channel for samples, for example --channel sample, or leave --channel out"
        )
    head = None if where is None else read_head(store, where)
    if head is not None and sample is not None and where is not None:
        check_takes_samples(store, where, head, what=f"--limit {limit}")
    parent = read_manifest(store, head.release_id) if head else None
    asked = Asked.of(config, sample)
    period = asked.period(run)
    model_id, train_key = _answering(store, asked, period, parent), asked.train_key(period)
    if live:
        model_id, train_key = _kept(store, asked, parent)
    number, canary = head.number if head else 0, config.publish.canary
    if canary is not None and channel is None and sample is None and parent is not None and parent.model_id != model_id:
        beside = read_head(store, canary)
        where, number = canary, beside.number if beside else 0
        carried = read_manifest(store, beside.release_id) if beside else None
        if carried is not None and carried.model_id == model_id and carried.sample is None:
            parent = carried
    return Standing(
        channel=where,
        head=number,
        parent=parent,
        transforms=main_transforms(config, store, model_id),
        asked=asked,
        train_key=train_key,
        model_id=model_id,
    )


def _kept(store: Store, asked: Asked, parent: Manifest | None) -> tuple[str, str]:
    """Return the bundle of the channel's release and its train key, for a night that is to keep it."""
    before = None if parent is None else parent_asked(store, parent)
    if parent is None or before is None:
        raise ConfigError(
            "--live keeps the bundle of the channel's release, and there is none, or its settings are no longer on the "
            "store; leave --live out"
        )
    old, new = before.settings(), asked.settings()
    if differ := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
        raise ConfigError(
            f"--live keeps the bundle of release {parent.release_id}, and the config asks for another one: "
            f"{', '.join(differ)}; run it with the config of that release, or leave --live out"
        )
    return parent.model_id, str(parent.inputs["train_key"])


def parent_asked(store: Store, parent: Manifest) -> Asked | None:
    """Return what the run that made a release had asked for; None when its config is gone or of another version."""
    name = f"{RUNS}{parent.run}/config.yaml"
    return Asked.from_frozen(store.get(name)) if store.exists(name) else None


def _answering(store: Store, asked: Asked, period: str, parent: Manifest | None) -> str | None:
    """Return the model_id that answers; bundles of versions whose keys held the hardware answer too."""
    key = asked.train_key(period)
    found = find_bundle(store, key)
    if found is not None or asked.sample is not None:
        return found  # earlier versions did not tell a sample's bundle from the catalogue's
    found = find_bundle(store, asked.former_train_key(period))
    if found is not None or parent is None:
        return found
    # The hardware has changed since: the parent's run says which settings its bundle's key was made of.
    before = parent_asked(store, parent)
    if before is None or before.sample is not None or before.train_key(period) != key:
        return None
    former = before.former_train_key(period)
    return find_bundle(store, former) if parent.inputs.get("train_key") == former else None
