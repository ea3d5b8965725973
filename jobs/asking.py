"""What `similar` and `search` share: opening a release, filters, and how neighbours are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.command import Arguments, Outcome
from jobs.place import load_light
from pipeline.errors import NotFound
from pipeline.index.opened import OpenedRelease
from pipeline.reader import Neighbour, Release, open_release
from pipeline.release import Manifest

_SHOWN_ATTRIBUTES = 4
_WIDEST = 40


def open_asked(arguments: Arguments) -> Release:
    """Return the release that the options name."""
    config = load_light(arguments)
    return open_release(
        config.store.url,
        channel=arguments.options.channel or config.publish.channel,
        release_id=arguments.options.release,
        options=config.store.options(),
    )


def open_other(arguments: Arguments, manifest: Manifest) -> tuple[OpenedRelease | None, str]:
    """Return the release of `--against`, by default the parent of a manifest; where that is not to be had, why not."""
    config, against = load_light(arguments), arguments.options.against
    wanted = against or manifest.parent
    if wanted is None:
        return None, f"{manifest.release_id} has no parent; --against RELEASE_ID names another release to compare with"
    try:
        return open_release(config.store.url, release_id=wanted, options=config.store.options()).opened, ""
    except NotFound:
        if against is not None:
            raise
        return None, f"its parent {wanted} has expired; --against RELEASE_ID names another release to compare with"


def answer(release: Release, asked: str, neighbours: Sequence[Neighbour]) -> Outcome:
    """Return neighbours as an outcome; asked: what they are near to."""
    rows = [{"item_id": near.item_id, "score": near.score, "attributes": dict(near.attributes)} for near in neighbours]
    lines = [f"nearest to {asked} in {release.release_id} (metric {release.manifest.metric}, larger is nearer)"]
    width = max((len(near.item_id) for near in neighbours), default=0)
    lines += [
        f"  {near.score:8.4f}  {near.item_id:<{width}}  {_short(near.attributes)}".rstrip() for near in neighbours
    ]
    if not neighbours:
        lines.append("  none")
    details = {"asked": asked, "metric": release.manifest.metric, "model_id": release.model_id, "neighbours": rows}
    return Outcome(release=release.release_id, reason="answered", details=details, text="\n".join(lines))


def _short(attributes: dict[str, Any]) -> str:
    shown = [(name, str(value)) for name, value in attributes.items() if value is not None][:_SHOWN_ATTRIBUTES]
    return ", ".join(
        f"{name}={value if len(value) <= _WIDEST else value[: _WIDEST - 1] + '…'}" for name, value in shown
    )
