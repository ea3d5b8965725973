"""Whether a release may take another's place on a channel: judged by what both have measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import GateRefused, NotFound
from ..evaluation.defaults import PROMOTE
from ..evaluation.gates import Limits
from ..evaluation.judging import Side, judge, limit_names, side_of
from ..evaluation.measured import measured_of
from ..evaluation.verdicts import GateVerdict, allowed_in, refusal_text, with_allowed
from ..release import ChannelEntry, Manifest, PublishConfig, read_head, read_manifest
from ..release.tables import read_table
from ..storage import Store
from .allowing import checked_allowed

PREFIX = "promote."


def side_of_release(store: Store, manifest: Manifest) -> Side:
    """Return a release as gates see it."""
    rows = measured_of(read_table(store, manifest, "measures")) if "measures" in manifest.files else []
    counts = {name: float(value) for name, value in manifest.counts.items() if name == "items"}
    return side_of({**counts, **manifest.measures}, rows, manifest.model_id)


@dataclass(frozen=True, slots=True)
class Promotion:
    """What the limits of `gates.promote` say of a release that is to take another's place."""

    verdicts: tuple[GateVerdict, ...]

    @property
    def allowed(self) -> dict[str, str]:
        """Return the reasons by gate of what a person let pass."""
        return allowed_in(self.verdicts)


def require_promotable(
    store: Store,
    release: ChannelEntry,
    current: ChannelEntry | None,
    limits: Limits,
    *,
    allow: Sequence[str] | None = None,
    reason: str | None = None,
) -> Promotion:
    """Return what the limits say of a release that is to follow another on its channel, None: the first there.

    allow, reason: gates that a person lets pass this once, and why. Raises GateRefused where a limit is not kept,
    ConfigError as `checked_allowed`. A current release that has expired compares with nothing.
    """
    allowed = checked_allowed(allow, reason, limit_names(limits, PROMOTE, prefix=PREFIX))
    manifest = read_manifest(store, release.release_id, expect_sha256=release.manifest_sha256)
    now, before = side_of_release(store, manifest), None if current is None else _current(store, current)
    verdicts = judge(limits, now, before, defaults=PROMOTE, prefix=PREFIX)
    found = Promotion(with_allowed(verdicts, [] if allowed is None else [allowed]))
    if any(verdict.stops for verdict in found.verdicts):
        text = refusal_text(
            found.verdicts,
            what=f"release {release.release_id} is not promoted",
            look_at=manifest.file("report").name if "report" in manifest.files else "`codebooks report`",
            again="the same command with",
        )
        plain = [verdict.plain() for verdict in found.verdicts]
        raise GateRefused(text, release=release.release_id, verdicts=plain)
    return found


def _current(store: Store, entry: ChannelEntry) -> Side | None:
    try:
        return side_of_release(store, read_manifest(store, entry.release_id, expect_sha256=entry.manifest_sha256))
    except NotFound:
        return None


def beside_text(store: Store, publish: PublishConfig, channel: str, model_id: str) -> str:
    """Return what is said of a release that went beside the live one, "" of any other.

    channel, model_id: where it was published, and its bundle.
    """
    if channel != publish.canary:
        return ""
    live = read_head(store, publish.channel)
    if live is None:
        return ""
    return (
        f". It is of another bundle, {model_id[:12]}, and channel {publish.channel} stays at {live.release_id}; "
        f"`codebooks promote {channel} {publish.channel}` brings it there once it keeps gates.promote"
    )
