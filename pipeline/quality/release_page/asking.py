"""A report as somebody asks for it: of one release or two, on the screen, in a file or in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CodebooksError, ConfigError, NotFound
from ...index.opened import OpenedRelease
from ...release import Manifest, published_digest, read_delisted, read_head, read_manifest
from ...release.tables import write_table
from ...report import NightReport, render_night
from ...report.night import plain
from ...storage import Store
from ...storage.cache import FileCache
from ...storage.local import expanded
from .stored import Asked, stored_report
from .tables import report_tables

FORMS = (".html", ".json")
_PAGE, _DATA = "report.html", "report.json"


@dataclass(frozen=True, slots=True)
class Reported:
    """A report and which releases it is of; other: None where there is none beside it."""

    release: str
    other: str | None
    report: NightReport

    def plain(self) -> dict[str, Any]:
        """Return it as plain values for JSON, without pictures."""
        return {"release": self.release, "other": self.other, **plain(self.report)}


def report_of(store: Store, release: str | None, other: str | None, asked: Asked) -> Reported:
    """Return the report of a release (None: the channel's current one) beside its parent; of two the later beside the
    earlier.

    Raises NotFound where there is no such release, and as opening one does; a parent that cannot be opened is left out.
    """
    if release is None:
        head = read_head(store, asked.channel)
        if head is None:
            raise NotFound(f"channel {asked.channel!r} on {store.url} has no releases yet; name a release")
        release = head.release_id
    cache, delisted = FileCache(), read_delisted(store)

    def opened(manifest: Manifest) -> OpenedRelease:
        found = OpenedRelease(store, cache, manifest, None)
        found.mask(delisted)
        return found

    now, before, alone = _manifest(store, release), None, ""
    if other is not None:
        if other == release:
            raise ConfigError(f"{release!r} is named twice; a release beside itself shows nothing")
        earlier, now = sorted((now, _manifest(store, other)), key=lambda one: (one.created, one.release_id))
        before = opened(earlier)
    elif now.parent is None:
        alone = "this is the first release of its channel; a second release can be named"
    else:
        try:
            before = opened(_manifest(store, now.parent))
        except CodebooksError as error:
            alone = f"its parent cannot be shown: {error}"
    report = stored_report(store, opened(now), before, asked, alone=alone)
    return Reported(now.release_id, None if before is None else before.manifest.release_id, report)


def _manifest(store: Store, release: str) -> Manifest:
    return read_manifest(store, release, expect_sha256=published_digest(store, release))


def new_place(text: str) -> Path:
    """Return where a report is to be written: a file of FORMS, or a folder. Raises ConfigError where that cannot be."""
    path = expanded(text)
    if path.suffix and path.suffix.lower() not in FORMS:
        raise ConfigError(f"--to {text!r} ends in {path.suffix}; name a file in {', '.join(FORMS)}, or a folder")
    if path.exists():
        raise ConfigError(f"{path} is there already; name another place, or delete it first")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; make it first, or name another place")
    return path


def written(found: Reported, path: Path) -> list[Path]:
    """Write a report and return its files: the one that `path` names, or in a folder page, data and tables.

    Raises ConfigError where something is there already or cannot be written.
    """
    form = {"": None, FORMS[0]: _PAGE, FORMS[1]: _DATA}[path.suffix.lower()]
    files = dict(_files(found, only=form))
    try:
        return [_write(path / name if not path.suffix else path, data) for name, data in files.items()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}); name another place") from error


def _files(found: Reported, only: str | None = None) -> Iterator[tuple[str, bytes]]:
    if only in (None, _PAGE):
        yield _PAGE, render_night(found.report)
    if only in (None, _DATA):
        yield _DATA, json.dumps(found.plain(), indent=1, sort_keys=True, ensure_ascii=False).encode()
    if only is None:
        for name, table in report_tables(found.report).items():
            yield f"{name}.parquet", write_table(table)


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
    return path


def report_text(found: Reported) -> str:
    """Return a report's verdict, counts and neighbours in a few lines for people."""
    data = found.report
    lines = [f"{found.release}" + (f", beside {found.other}" if found.other else ""), f"  {data.sentence}"]
    if data.changes:
        lines.append("  " + ", ".join(f"{group.photos:,} {group.name}" for group in data.changes))
    lines += [f"  quarantine: {line.count:,} {line.reason} ({line.new:,} new)" for line in data.refused]
    lines += [
        f"  {line.name}: {line.value:.4g}" + ("" if line.before is None else f", before {line.before:.4g}")
        for line in data.measures
        if line.category is None
    ]
    lines += [f"  left out: {name}: {why}" for name, why in data.left_out]
    return "\n".join(lines)
