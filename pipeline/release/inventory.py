"""Every file of a store, kept or not, and why; what is not known is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..storage import Entry
from .holds import LEASES, PINS
from .manifest import RELEASES, SEGMENTS
from .marked import Judged
from .roots import Policy, Roots

_PART = re.compile(
    r"(latents|pixels|photos)/[A-Za-z0-9_-]+/[A-Za-z0-9._-]+\.parquet"
    rf"|{SEGMENTS}[A-Za-z0-9_-]+/[A-Za-z0-9._-]+\.(?:faiss|npy)"
)
_UNLISTED = r"manifest\.json|signature-[0-9a-f]{12}\.json"
_OF_RELEASE = re.compile(rf"{RELEASES}([^/]+)/(?:({_UNLISTED})|[a-z_]+-[0-9a-f]{{12}}\.[a-z]+)")
_OF_RUN = re.compile(r"runs/([^/]+)/(?:(checkpoints|tensorboard|scratch)/.+|plan\.parquet)")
_STAYS = {
    "store.json": "the store's format",
    "channels/": "channel logs are never deleted",
    "models/": "unknown file",
    "delisted/": "delisted items",
    "expiry/": "expiry's own record",
    "runs/": "a run's record",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What a file is held against. now: the store's clock."""

    roots: Roots
    now: datetime
    grace: timedelta
    policy: Policy


def judge(entries: Sequence[Entry], rules: Rules) -> list[Judged]:
    """Return the verdict on every file of a listing."""
    return [_judged(entry, rules) for entry in entries]


def _judged(entry: Entry, rules: Rules) -> Judged:
    why = rules.roots.names.get(entry.name)
    if why is None and (part := _PART.fullmatch(entry.name)):
        return _part(entry, part.group(1), rules)
    if why is None and (of_release := _OF_RELEASE.fullmatch(entry.name)):
        return _release_file(entry, of_release.group(1), rules, unlisted=bool(of_release.group(2)))
    if why is None and (of_run := _OF_RUN.fullmatch(entry.name)):
        return _run_file(entry, of_run.group(1), rules)
    if why is None and (model := rules.roots.bundles.owner(entry.name)):
        return _bundle_file(entry, model, rules)
    if why is None and entry.name.startswith((PINS, LEASES)):
        ended = entry.name in rules.roots.ended
        return _aged(entry, rules.grace, rules, "it has ended") if ended else _kept(entry, "it holds a release")
    if why is None:
        why = next((said for prefix, said in _STAYS.items() if entry.name.startswith(prefix)), "unknown file")
    return _kept(entry, why)


def _part(entry: Entry, kind: str | None, rules: Rules) -> Judged:
    used = next((why for folder, why in rules.roots.folders if entry.name.startswith(folder)), None)
    if used is not None:
        return _kept(entry, used)
    if kind not in ("pixels", "photos"):  # latents, or a segment of an index
        return _aged(entry, rules.grace, rules, "no kept release names it")
    days = max(rules.grace, timedelta(days=rules.policy.pixels_days))
    return _aged(entry, days, rules, f"pixels live {days / timedelta(days=1):g} days")


def _release_file(entry: Entry, release: str, rules: Rules, *, unlisted: bool) -> Judged:
    """unlisted: the manifest or a signature, which stay as long as their release and are in no manifest."""
    if unlisted and release in rules.roots.releases:
        return _kept(entry, rules.roots.releases[release])
    run = release.rpartition("-")[0]
    if run in rules.roots.runs:
        return _kept(entry, rules.roots.runs[run])
    why = "release that nothing keeps" if unlisted else "no kept manifest names it"
    return _aged(entry, rules.grace, rules, why)


def _bundle_file(entry: Entry, model: str, rules: Rules) -> Judged:
    """All of a bundle goes at once, and what answers a train key with it."""
    used = rules.roots.bundles.reason(model)
    if used is not None:
        return _kept(entry, used)
    days = max(rules.grace, timedelta(days=rules.policy.bundles_days))
    newest = rules.roots.bundles.newest[model]
    if rules.now - newest < days:
        return _kept(entry, f"bundle younger than {days / timedelta(days=1):g} days (no kept release is of it)")
    return Judged(entry, False, "bundle that no kept release is of")


def _run_file(entry: Entry, run: str, rules: Rules) -> Judged:
    if run in rules.roots.runs:
        return _kept(entry, rules.roots.runs[run])
    days = max(rules.grace, timedelta(days=rules.policy.checkpoints_days))
    return _aged(entry, days, rules, f"checkpoints and plans live {days / timedelta(days=1):g} days")


def _aged(entry: Entry, least: timedelta, rules: Rules, why: str) -> Judged:
    if rules.now - entry.modified < least:
        return _kept(entry, f"younger than {least / timedelta(days=1):g} days ({why})")
    return Judged(entry, False, why)


def _kept(entry: Entry, why: str) -> Judged:
    return Judged(entry, True, why)
