"""What the sixteen processes of bench_turmoil.py do, each in a loop, and what each notes in a file of its own.

Publishers are whole nights: a run with heartbeats, a frozen plan, rows carried over from the parent, a part, an index,
a release, an entry of the log. Every row says which release it is of and its vector follows from its item's key, so
that a view that is put together from two releases shows itself. Pinned and leased releases are read byte for byte.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import CodebooksError, ConfigError, Conflict, IntegrityError, NotFound, Unavailable
from pipeline.index import IndexConfig, build_index, gather_latents
from pipeline.reader import Release, open_release
from pipeline.release import (
    Policy,
    expire,
    pin,
    promote,
    publish,
    read_head,
    read_log,
    read_manifest,
    read_table,
    release_id,
    release_key,
    rollback,
    undelete,
    unpin,
    verify_release,
    write_release,
)
from pipeline.runs import open_run
from pipeline.storage import LocalStore, S3Store, Store
from pipeline.storage import local as local_storage

MODEL, TRANSFORM, DIM = "ab" * 32, "cd" * 8, 6
PHOTOS, PARTS = 25, 5  # of a part, and of a release
CHANNELS = ("stable", "canary")
_HEAD = re.compile(r"channels/([a-z]+)/(\d{12})\.json")


@dataclass(frozen=True)
class Stage:
    """Where it plays. url: the store; work: the folder of notes and caches; maker, expiring: the tests' own modules."""

    url: str
    work: Path
    until: float
    grace_s: float
    fail: float
    maker: Any
    expiring: Any


class Diary:
    """An actor's notes, a line each. Opened anew for each, so that nothing is lost when the actor is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, what: str, **more: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"what": what, "at": time.time(), **more}, default=str) + "\n")


class _Watched(Store):
    """A store of which the diary has every entry of a log that this process was told it wrote."""

    diary: Diary

    def put_if_absent(self, name: str, data: bytes | memoryview) -> bool:
        won = super().put_if_absent(name, data)
        if match := _HEAD.fullmatch(name):
            self.diary.note("entry", channel=match[1], number=int(match[2]), won=won)
        return won


class WatchedDisk(_Watched, LocalStore):
    """A folder."""


class WatchedBucket(_Watched, S3Store):
    """A bucket."""


def fail_on_disk(root: str, share: float, counts: dict[str, int]) -> None:
    """Make a share of this process's file operations below a folder fail, half of them after they took effect."""

    def faulty(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            if not str(given[0]).startswith(root):
                return real(*given, **options)
            counts["calls"] += 1
            drawn = random.random()
            if drawn < share / 2:
                counts["failed"] += 1
                raise OSError(errno.EIO, "by rule")
            answer = real(*given, **options)
            if drawn < share:
                counts["lost"] += 1
                if hasattr(answer, "close"):
                    answer.close()
                raise OSError(errno.EIO, "by rule, done")
            return answer

        return call

    for name in ("stat", "unlink", "hardlink_to", "replace", "mkdir"):
        setattr(Path, name, faulty(getattr(Path, name)))
    os.scandir = faulty(os.scandir)  # type: ignore[assignment]
    local_storage.open = faulty(open)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Actor:
    """One process at work. name: of its role with a number."""

    name: str
    stage: Stage
    store: Store
    diary: Diary
    rng: np.random.Generator

    def rest(self, mean_s: float) -> None:
        time.sleep(float(self.rng.uniform(0.2, 1.8)) * mean_s)


def vector(item_id: str) -> np.ndarray:
    """Return the latents of an item, which its key decides."""
    return np.random.default_rng(zlib.crc32(item_id.encode())).normal(size=DIM).astype(np.float32)


# --- publishers


def publisher(actor: Actor, number: int, channel: str) -> None:
    run, tries = f"{actor.name}-{number:04d}", 0
    while True:  # a scheduler's: temporary failures are tried again under the same name
        try:
            entry = _night(actor, run, channel)
        except Unavailable:
            tries += 1
            if tries == 8:
                raise
            actor.diary.note("retried", run=run)
        else:
            actor.diary.note("told", channel=channel, entry=entry.model_dump(mode="json"))
            return


def _night(actor: Actor, run_name: str, channel: str) -> Any:
    store, maker = actor.store, actor.stage.maker
    run = open_run(store, run_name)
    with run.begin(f"channel: {channel}\n") as attempt:
        head = read_head(store, channel)
        frozen = {"number": head.number if head else 0, "release": head.release_id if head else None}
        frozen = json.loads(attempt.freeze("head.json", json.dumps(frozen).encode()))
        parent = read_manifest(store, frozen["release"]) if frozen["release"] else None
        kept = sorted(parent.parts, key=lambda part: part.name)[-(PARTS - 1) :] if parent else []
        attempt.freeze(
            "plan.parquet",
            actor.stage.expiring.plan(
                [part.name for part in kept], parent=frozen["release"], model=MODEL, transform=TRANSFORM
            ),
        )
        photos = [
            maker.Photo(f"{run_name}-{at:02d}", f"s3://photos/{run_name}/{at}.jpg", 0, vector(f"{run_name}-{at:02d}"))
            for at in range(PHOTOS)
        ]
        (part,) = maker.write_parts(store, photos, MODEL, f"{time.time():.0f}-{run_name}")
        own = maker.items_table(photos, [part.name])
        items = _carried(store, parent, {one.name for one in kept}, own)
        items = items.set_column(
            items.schema.get_field_index("category"), items.schema.field("category"), [[run_name] * items.num_rows]
        )
        attempt.check()
        written = _written(store, items, (*kept, part), run_name, attempt.number, frozen["release"], maker)
        attempt.check()
        return publish(
            store, channel, expected_head=frozen["number"], release_id=written.manifest.release_id,
            manifest_sha256=written.manifest_sha256, run=run_name, attempt=attempt.number,
        )  # fmt: skip


def _carried(store: Store, parent: Any, kept: set[str], own: pa.Table) -> pa.Table:
    if parent is None:
        return own
    before = read_table(store, parent, "items").select(own.column_names)
    mine = pa.array([name in kept for name in before["latents_part"].to_pylist()])
    whole = pa.concat_tables([before.filter(mine).cast(own.schema), own])
    return whole.sort_by("item_id").combine_chunks()


def _written(
    store: Store, items: pa.Table, parts: tuple[Any, ...], run: str, attempt: int, parent: str | None, maker: Any
) -> Any:
    config = IndexConfig()
    built = build_index(gather_latents(store, items, columns=config.needs), config)
    tables = {"items": items, "quarantine": maker.quarantine_table([], run), "changes": maker.changes_table([])}
    key = release_key(
        items_digest=run, model_id=MODEL, index={}, evaluation={}, gates={}, parent=parent
    )  # a retry's is the same
    return write_release(
        store,
        release_id=release_id(run, key),
        files={
            **{role: (maker.table_bytes(table), ".parquet", table.num_rows) for role, table in tables.items()},
            **built.files(),
        },
        release_key=key, run=run, attempt=attempt, parent=parent, model_id=MODEL, model_kind="vae", latent_dim=DIM,
        transform_id=TRANSFORM, metric=built.index.metric.name, index_kind=built.kind,
        index_parameters=built.parameters, parts=parts, counts={"items": items.num_rows}, code_version="turmoil",
    )  # fmt: skip


# --- operators


def promoter(actor: Actor) -> None:
    entry = promote(actor.store, "canary", "stable")
    actor.diary.note("told", channel="stable", entry=entry.model_dump(mode="json"))


def roller(actor: Actor) -> None:
    channel = str(actor.rng.choice(CHANNELS))
    recent = read_log(actor.store, channel, last=4)
    to = str(actor.rng.choice([entry.release_id for entry in recent])) if actor.rng.random() < 0.5 and recent else None
    entry = rollback(actor.store, channel, to=to)
    actor.diary.note("told", channel=channel, entry=entry.model_dump(mode="json"))


def pinner(actor: Actor) -> None:
    log = read_log(actor.store, str(actor.rng.choice(CHANNELS)), last=60)
    if not log:
        return
    release = str(actor.rng.choice([entry.release_id for entry in log]))
    until = datetime.now(UTC) + timedelta(days=1)
    pin(actor.store, release, owner=actor.name, reason="turmoil", until=until)
    for _ in range(5):
        actor.rest(actor.stage.grace_s / 2)
        _hold_whole(actor, release, "pinned")
    unpin(actor.store, release, owner=actor.name)


def expirer(actor: Actor) -> None:
    chosen = actor.rng.random()
    if chosen < 0.02:
        dropped = undelete(actor.store)
        actor.diary.note("undeleted", files=dropped.files)
        return
    grace_days = actor.stage.grace_s / 86_400
    policy = Policy(keep=3, keep_days=grace_days, grace_days=grace_days, max_share=1.0)
    while True:
        try:
            found = expire(actor.store, policy, yes=chosen > 0.25)
            break
        except ConfigError as error:  # an attempt was so long that a grace of twice its length is asked for
            if "longest attempt" not in str(error):
                raise
            actor.diary.note("longer grace", days=policy.grace_days)
            longer = 1.5 * float(policy.grace_days or 0)
            policy = replace(policy, keep_days=longer, grace_days=longer)
    actor.diary.note("expired", marked=found.marked.files, swept=found.swept.files, bytes=found.swept.bytes)


# --- readers


def reader(actor: Actor, release: Release, *, leased: bool) -> None:
    moved = release.refresh()
    _look_whole(actor, release)
    actor.diary.note("view", release=release.release_id, moved=moved)
    if leased and actor.rng.random() < 0.4:
        _hold_whole(actor, release.release_id, "leased")


def _look_whole(actor: Actor, release: Release) -> None:
    ids = release.item_ids()
    asked = str(actor.rng.choice(ids))
    near = release.similar(asked, k=10)
    vectors = np.stack([vector(item_id) for item_id in ids]).astype(np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[ids.index(asked)]
    order = [at for at in np.argsort(-cosines, kind="stable") if ids[at] != asked][:10]
    problems = []
    if len(ids) != release.manifest.counts["items"]:
        problems.append(f"{len(ids)} items, the manifest says {release.manifest.counts['items']}")
    if [one.item_id for one in near] != [ids[at] for at in order]:
        problems.append(f"neighbours of {asked} are not those of its vectors")
    strange = {one.attributes["category"] for one in near} - {release.manifest.run}
    if strange:
        problems.append(f"rows of {sorted(map(str, strange))} in a release of {release.manifest.run}")
    stored = release.latents([asked])
    if not np.array_equal(np.stack(stored["mean"].to_pylist()).astype(np.float32)[0], vector(asked)):
        problems.append(f"latents of {asked} are not its own")
    for problem in problems:
        actor.diary.note("VIOLATION", release=release.release_id, problem=problem)


def _hold_whole(actor: Actor, release: str, how: str) -> None:
    """Read a release that is held, every byte of it."""
    try:
        problems = verify_release(actor.store, release).problems
    except (NotFound, IntegrityError) as error:
        problems = (str(error),)
    for problem in problems:
        actor.diary.note("VIOLATION", release=release, problem=f"{how}: {problem}")
    actor.diary.note("held whole" if not problems else "held broken", release=release, how=how)


# --- the loop of each

# Errors that are answers: an operator may ask for what has gone, a reader may not meet it.
_ANSWERS = {False: (Conflict, Unavailable, ConfigError, NotFound), True: (Unavailable,)}

ROLES = {"publisher": 4, "promoter": 2, "roller": 2, "pinner": 2, "expirer": 2, "reader": 4}
RESTS = {"publisher": 6.0, "promoter": 5.0, "roller": 6.0, "pinner": 1.0, "expirer": 4.0, "reader": 1.0}


def store_of(stage: Stage, diary: Diary) -> Store:
    """Return the watched store of an actor."""
    kind = WatchedBucket if stage.url.startswith("s3://") else WatchedDisk
    store = kind(stage.url)
    store.diary = diary
    return store


def act(name: str, stage: Stage) -> None:
    """Be one actor until the end; every error that is an answer is noted by its class, any other as a violation."""
    role, at = name.rsplit("-", 1)
    diary, counts = Diary(stage.work / f"{name}.jsonl"), {"calls": 0, "failed": 0, "lost": 0}
    random.seed(zlib.crc32(name.encode()))
    if not stage.url.startswith("s3://"):
        fail_on_disk(stage.url, stage.fail, counts)
    actor = Actor(name, stage, store_of(stage, diary), diary, np.random.default_rng(zlib.crc32(name.encode())))
    steps = _steps(actor, role, int(at))
    while time.time() < stage.until:
        try:
            next(steps)
            diary.note("done", role=role)
        except _ANSWERS[role == "reader"] as error:
            diary.note("refused", role=role, error=type(error).__name__, text=str(error)[:300])
            steps = _steps(actor, role, int(at))
        except (CodebooksError, OSError) as error:
            diary.note("VIOLATION", problem=f"{role}: {type(error).__name__}: {error}"[:600])
            steps = _steps(actor, role, int(at))
        actor.rest(RESTS[role])
    diary.note("counts", **counts)


def _steps(actor: Actor, role: str, at: int) -> Iterator[None]:
    channel = CHANNELS[at % 2]
    work = {"promoter": promoter, "roller": roller, "pinner": pinner, "expirer": expirer}
    if role in work:
        while True:
            work[role](actor)
            yield
    if role == "publisher":
        while True:
            publisher(actor, int(time.time() * 10) % 10_000_000, channel)
            yield
    cache = actor.stage.work / f"cache-{actor.name}"
    while True:  # each reader opens anew now and then, half of them with a lease
        release = open_release(actor.stage.url, channel=channel, cache_dir=cache, lease=at < 2)
        for _ in range(12):
            reader(actor, release, leased=at < 2)
            yield


def publisher_once(stage: Stage, store: Store, run: str, channel: str) -> None:
    """Publish one night without any faults, so that there is something to read."""
    diary = Diary(stage.work / "opening.jsonl")
    entry = _night(Actor(run, stage, store, diary, np.random.default_rng(0)), run, channel)
    diary.note("told", channel=channel, entry=entry.model_dump(mode="json"))
