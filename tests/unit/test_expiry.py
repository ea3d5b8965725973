"""Expiry: what stays and why, two phases with a way back, and that nothing readable is ever deleted."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline.errors import CodebooksError, ConfigError, Conflict, IntegrityError, NotFound, Unavailable
from pipeline.release import (
    ChannelEntry,
    Policy,
    expire,
    inventory_bytes,
    pin,
    promote,
    read_head,
    read_log,
    read_manifest,
    rollback,
    take_lease,
    undelete,
    unpin,
)
from pipeline.release import expiry as expiry_room
from pipeline.release import holds as holds_room
from pipeline.release import roots as roots_room
from pipeline.release.expiry import MARKS
from pipeline.release.holds import SWEEPS
from pipeline.storage import Entry, open_store

DAYS = timedelta(days=1)
ALL = Policy(keep=2, keep_days=3, max_share=1.0)


@pytest.fixture
def store(expiring: Any) -> Iterator[Any]:
    made = expiring.ClockStore("memory://expiry")
    yield made
    made.before = lambda call, name: None


def nights(expiring: Any, store: Any, count: int, *, first: int = 0) -> list[str]:
    """Publish so many nights, a day apart, each with a part of its own and one that all share; return the releases."""
    made = []
    for number in range(first, first + count):
        own = expiring.part(store, f"latents/m/own-{number}.parquet", b"own" * 40)
        shared = expiring.part(store, "latents/m/shared.parquet", b"shared" * 40)
        made.append(expiring.night(store, f"night-{number:02d}", [own, shared]).manifest.release_id)
        store.pass_days(1)
    return made


def verdicts(found: Any) -> dict[str, tuple[bool, str]]:
    return {one.entry.name: (one.keep, one.reason) for one in found.judged}


def going(found: Any) -> set[str]:
    return {one.entry.name for one in found.judged if not one.keep}


def test_a_dry_run_changes_nothing_and_gives_every_file_its_reason(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 5)
    store.put("latents/m/notes.txt", b"by hand")
    store.put("somewhere/else", b"x")
    store.pass_days(20)
    before = store.names()
    found = expire(store, ALL)
    assert store.names() - before == {"runs/expiry.clock"}
    said = verdicts(found)
    assert set(said) == store.names()
    for number, release in enumerate(made):
        keep = number >= 3  # the newest two
        assert said[f"releases/{release}/manifest.json"][0] is keep
        assert said[f"latents/m/own-{number}.parquet"][0] is keep
    assert said[f"releases/{made[4]}/manifest.json"] == (True, "current on stable")
    assert said[f"releases/{made[0]}/manifest.json"] == (False, "release that nothing keeps")
    assert said["latents/m/shared.parquet"][1].startswith(f"named by {made[3]}: one of the last 2 of stable")
    assert said["latents/m/notes.txt"] == said["somewhere/else"] == (True, "unknown file")
    assert all(keep for name, (keep, _) in said.items() if name.startswith("channels/"))
    table = pq.read_table(io.BytesIO(inventory_bytes(found.judged)))
    assert table["name"].to_pylist() == sorted(store.names())
    assert sum(verdict == "delete" for verdict in table["verdict"].to_pylist()) == found.deletable.files
    assert "release that nothing keeps" in found.text()
    assert (found.marked.files, found.swept.files, list(store.list(MARKS))) == (0, 0, [])


def test_marked_one_day_swept_after_the_grace(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 5)
    store.pass_days(20)
    first = expire(store, ALL, yes=True)
    assert first.marked.files == first.deletable.files > 0
    for release in made:
        assert verify_of(store, release)
    store.pass_days(6.9)
    early = expire(store, ALL, yes=True)
    assert (early.swept.files, early.marked.files, early.waiting) == (0, 0, first.marked)
    store.pass_days(0.2)
    listed = going(early)
    late = expire(store, ALL, yes=True)
    assert late.swept == first.marked
    assert not listed & store.names()
    assert [entry.release_id for entry in read_log(store, "stable")] == made
    for release in made[:3]:
        with pytest.raises(NotFound):
            read_manifest(store, release)
        with pytest.raises(NotFound):
            pin(store, release, owner="me", reason="")
    assert verify_of(store, made[3])
    assert verify_of(store, made[4])
    assert list(store.list(SWEEPS)) == list(store.list(MARKS)) == []


def verify_of(store: Any, release: str) -> bool:
    """Return whether every file that a release names is there."""
    return not set(read_manifest(store, release).names()) - store.names()


def test_what_came_to_be_needed_after_the_mark_stays(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 6)
    store.pass_days(20)
    expire(store, ALL, yes=True)
    store.pass_days(5)
    pin(store, made[0], owner="me", reason="")
    lease = take_lease(store, made[1], owner="feed", ttl_s=10 * 86_400)
    rollback(store, "stable", to=made[2])
    reused = expiring.part(store, "latents/m/own-3.parquet", b"")  # a new release names a marked part
    store.pass_days(3)
    expiring.release(store, "trial", [reused])
    expire(store, ALL, yes=True)
    for release in made[:3]:
        assert verify_of(store, release)
    assert "latents/m/own-3.parquet" in store.names()
    assert f"releases/{made[3]}/manifest.json" not in store.names()
    # Once nothing holds them any more, they go, by a mark of their own.
    unpin(store, made[0], owner="me")
    lease.close()
    for _ in range(3):
        store.pass_days(8)
        expire(store, ALL, yes=True)
    assert not {f"releases/{release}/manifest.json" for release in made[:2]} & store.names()
    assert verify_of(store, made[2])


def test_a_pin_and_a_lease_end_by_the_stores_clock(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 6)
    store.now = datetime.now(UTC)  # whoever pins writes a date of the calendar
    pin(store, made[0], owner="me", reason="", until=store.now + 30 * DAYS)
    take_lease(store, made[1], owner="feed", ttl_s=20 * 86_400)
    expected = [(25, False, True), (35, False, False)]
    store.pass_days(15)
    said = verdicts(expire(store, ALL))
    assert [said[f"releases/{release}/manifest.json"][1] for release in made[:2]] == ["pinned by me", "leased by feed"]
    passed = 15
    for days, leased, pinned in expected:
        store.pass_days(days - passed)
        passed = days
        said = verdicts(expire(store, ALL))
        assert said[f"releases/{made[1]}/manifest.json"][0] is leased
        assert said[f"releases/{made[0]}/manifest.json"][0] is pinned


def test_undelete_until_the_sweep(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 5)
    store.pass_days(20)
    marked = expire(store, ALL, yes=True).marked
    assert undelete(store) == marked
    store.pass_days(30)
    assert expire(store, ALL, yes=True).swept.files == 0  # marked anew, not swept
    assert all(verify_of(store, release) for release in made)
    undelete(store)
    assert undelete(store).files == 0


def test_a_live_run_loses_nothing_that_it_may_need(expiring: Any, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the negative control: an expiry that ignores runs takes a part from one that is at work."""
    nights(expiring, store, 3)
    part = expiring.part(store, "latents/m/planned.parquet", b"planned")
    found = expiring.part(store, "latents/m/found.parquet", b"found")
    store.pass_days(40)
    expire(store, ALL, yes=True)
    store.pass_days(8)
    expiring.begin(store, "tonight")
    store.put("runs/tonight/plan.parquet", expiring.plan([part.name], parent=None))
    store.put_if_absent("releases/tonight-000000000000/items-0123456789ab.parquet", b"half a release")
    said = verdicts(expire(store, ALL, yes=True))
    assert said[part.name] == (True, "the plan of run tonight may be at work")
    assert said[found.name] == (True, "run tonight may be at work and may find this")
    expiring.release(store, "tonight", [part, found])
    # A run that has not been heard of for a day keeps what its plan names, no longer what it might find.
    other = expiring.part(store, "latents/m/other.parquet", b"other")
    store.pass_days(9)
    expiring.begin(store, "silent")
    store.put("runs/silent/plan.parquet", expiring.plan([other.name], parent=None))
    store.pass_days(1)
    assert verdicts(expire(store, ALL))[other.name][0]
    store.pass_days(7)
    assert not verdicts(expire(store, ALL))[other.name][0]

    lonely = expiring.part(store, "latents/m/lonely.parquet", b"lonely")
    store.pass_days(8)
    expire(store, ALL, yes=True)
    store.pass_days(8)
    expiring.begin(store, "next")
    monkeypatch.setattr(roots_room, "read_runs", lambda entries: {})
    expire(store, ALL, yes=True)
    with pytest.raises(IntegrityError, match=r"latents/m/lonely\.parquet"):
        expiring.release(store, "next", [lonely])


def test_an_earlier_versions_sign_of_life_is_of_the_newest_attempt() -> None:
    began, beat = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 9, tzinfo=UTC)
    names = [f"runs/long/attempts/{number}.json" for number in range(1, 11)]  # a store lists 9 last
    listed = [Entry(name, 1, "t", began) for name in sorted(names)]
    found = roots_room.read_runs([*listed, Entry("runs/long/heartbeat", 1, "t", beat)])
    assert found["long"].last_sign() == beat


def test_a_grace_shorter_than_twice_the_longest_attempt_is_refused(expiring: Any, store: Any) -> None:
    expiring.begin(store, "long")
    store.pass_days(5)
    expiring.end(store, "long")
    assert expire(store, ALL).grace == 10 * DAYS
    with pytest.raises(ConfigError, match="of run 'long', 5 days"):
        expire(store, Policy(grace_days=9.9))
    assert expire(store, Policy(grace_days=12)).grace == 12 * DAYS


def test_too_large_a_share_needs_a_word(expiring: Any, store: Any) -> None:
    nights(expiring, store, 12)
    store.pass_days(20)
    with pytest.raises(ConfigError, match=r"at most 10% are in one go.*--max-share 0\.\d\d"):
        expire(store, Policy(keep=2, keep_days=3, max_share=0.1), yes=True)
    assert list(store.list(MARKS)) == []
    expire(store, ALL, yes=True)
    store.pass_days(8)
    before = store.names()
    with pytest.raises(ConfigError, match="would be swept"):
        expire(store, Policy(keep=2, keep_days=3, max_share=0.1), yes=True)
    assert before <= store.names()


@pytest.mark.parametrize("name", ["pins/{0}/me.json", "leases/{0}/me-1/000001.json", "releases/{0}/manifest.json"])
def test_what_cannot_be_understood_stops_everything(expiring: Any, store: Any, name: str) -> None:
    made = nights(expiring, store, 4)
    name = name.format(made[-1])
    held = json.loads(store.get(name)) if name in store.names() else {}
    store.put(name, json.dumps({**held, "format": held.get("format", 1), "unless": "full moon"}).encode())
    store.pass_days(20)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        expire(store, ALL)


def test_pixels_and_checkpoints_live_by_age(expiring: Any, store: Any) -> None:
    nights(expiring, store, 1)
    pixels, old = "pixels/t/a.parquet", "runs/night-00/checkpoints/k/000000001/rank0"
    waiting = "runs/night-00/scratch/0123456789ab/vectors-0123456789ab"
    for name in (pixels, old, waiting, "runs/night-00/result.json"):
        store.put(name, b"x")
    of_run = {old, waiting, "runs/night-00/plan.parquet"}
    store.pass_days(12.5)
    assert not going(expire(store, ALL))
    store.pass_days(2)
    assert going(expire(store, ALL)) == of_run
    store.pass_days(16)
    assert going(expire(store, ALL)) == of_run | {pixels}


def test_a_sweep_that_broke_off_is_gone_on_with(expiring: Any, store: Any) -> None:
    made = nights(expiring, store, 5)
    store.pass_days(20)
    expire(store, ALL, yes=True)
    store.pass_days(8)

    def dies(call: str, name: str) -> None:
        if call == "delete" and name.startswith("latents/"):
            raise Unavailable("the store is away")

    store.before = dies
    with pytest.raises(Unavailable, match="away"):
        expire(store, ALL, yes=True)
    store.before = lambda call, name: None
    with pytest.raises(Unavailable, match="another sweep is at work"):
        expire(store, ALL, yes=True)
    store.pass_days(0.1)
    assert expire(store, ALL, yes=True).swept.files > 0
    assert list(store.list(SWEEPS)) == list(store.list(MARKS)) == []
    assert not {name for name in store.names() if "own-0" in name}
    assert verify_of(store, made[4])


def test_a_sweep_stops_when_its_mark_is_dropped(expiring: Any, store: Any) -> None:
    nights(expiring, store, 5)
    store.pass_days(20)
    expire(store, ALL, yes=True)
    store.pass_days(8)
    seen: list[str] = []

    def drops(call: str, name: str) -> None:
        if call == "delete" and name.startswith("releases/") and not seen:
            seen.append(name)
            with pytest.raises(Conflict, match="may have deleted some"):
                undelete(store)

    store.before = drops
    with pytest.raises(Conflict, match="the sweep has stopped"):
        expire(store, ALL, yes=True)
    assert [name for name in seen if name in store.names()] == []  # the one that was under way
    assert "latents/m/own-0.parquet" in store.names()
    assert list(store.list(SWEEPS)) == []


@pytest.mark.slow
def test_sixty_nights(expiring: Any, store: Any) -> None:
    """The store stops growing, the inventory is what a second bookkeeping says, and undelete works on the way."""
    policy = Policy(keep=5, keep_days=5, pixels_days=10, max_share=0.5)
    living = list(range(20))
    parts = {number: expiring.part(store, f"latents/m/p{number}.parquet", bytes(2000)) for number in living}
    sizes, named = [], {}
    for number in range(60):
        new = 20 + number
        living = [*living[1:], new]  # one part a night is written anew
        parts[new] = expiring.part(store, f"latents/m/p{new}.parquet", bytes(2000))
        store.put_if_absent(f"pixels/t/p{new}.parquet", bytes(5000))
        store.put_if_absent(f"latents/m/orphan-{number}.parquet", bytes(500))  # of a run that came to nothing
        release = expiring.night(store, f"n-{number:02d}", [parts[one] for one in living]).manifest.release_id
        named[release] = {parts[one].name for one in living}
        found = expire(store, policy, yes=True)
        if number == 30:
            assert undelete(store).files > 0
            expire(store, policy, yes=True)
        recent = set(list(named)[-7:])  # the last 5, and those of less than 7 days ago: the grace
        needed = set().union(*(named[one] for one in recent))
        kept = {one.entry.name for one in found.judged if one.keep and one.reason.startswith("named by")}
        assert {name for name in kept if name.startswith("latents/")} == needed
        assert needed <= store.names()
        ages = {f"latents/m/p{one}.parquet": number - max(0, one - 20) for one in parts}
        ages |= {f"latents/m/orphan-{one}.parquet": number - one for one in range(number + 1)}
        old = {name for name, age in ages.items() if age >= 7 and name not in needed}
        assert {name for name in going(found) if name.startswith("latents/")} == old & {
            one.entry.name for one in found.judged
        }
        sizes.append(store.size())
        store.pass_days(1)
    # Whatever the last sweep was to take is gone: alive are what is needed, and two weeks of what waits.
    assert max(sizes[50:]) < 1.05 * max(sizes[22:30])
    assert max(sizes[50:]) < 0.6 * (sizes[6] + 53 * (sizes[6] - sizes[1]) / 5)  # what it would have grown to
    alive = {name for name in store.names() if name.startswith("latents/m/orphan")}
    assert {f"latents/m/orphan-{number}.parquet" for number in range(46, 60)} <= alive
    assert not {f"latents/m/orphan-{number}.parquet" for number in range(20)} & alive
    assert len(read_log(store, "stable")) == 60


def test_by_command(maker: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    there = open_store(str(tmp_path / "store"))
    maker.make_release(there, maker.some_photos(3))
    place, file = f"store={there.url}", str(tmp_path / "list.parquet")
    assert main(["expire", place, "--inventory", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["deletable"]["files"], found["grace_s"]) == (0, 7 * 86_400)
    assert set(pq.read_table(file)["verdict"].to_pylist()) == {"keep"}
    assert main(["expire", place, "--inventory", file, "--yes", "--keep", "3"]) == 0
    assert main(["undelete", place]) == 0
    assert main(["expire", place, "--inventory", file, "--keep", "0"]) == 2


class Serial:
    """In place of a pool: the deletions of a sweep come one after the other, so that others come between."""

    def __init__(self, _: int) -> None: ...

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[[Any], Any], values: Any) -> list[Any]:
        return [function(value) for value in values]


class World:
    """Runs, readers, pinners, operators and two sweepers on one store; `check` finds what is gone and should not be."""

    def __init__(self, expiring: Any, store: Any, seed: int) -> None:
        self.expiring, self.store, self.rng = expiring, store, np.random.default_rng(seed)
        self.held: dict[object, tuple[str, Any]] = {}  # what each holder may rely on, until when
        self.named: dict[str, list[str]] = {}
        self.dirty, self.swept, self.published, self.lost = True, 0, 0, ""
        nights(expiring, store, 3)
        self.turns = expiring.Turns(store, self.rng, self.between)
        pause = store.before

        def before(call: str, name: str) -> None:
            self.dirty |= call == "delete" or name.startswith("channels/")
            self.swept += call == "delete" and name.startswith(("latents/", "releases/"))
            if call != "delete":  # a call that the store carries out an hour after it was sent is outside the promise
                pause(call, name)

        store.before = before
        for number in range(3):
            self.turns.add(lambda number=number: self.work(number))
        for actor in (self.read, self.read, self.pins, self.moves, self.expires, self.expires):
            self.turns.add(actor)

    def between(self) -> None:
        if self.rng.random() < 0.02:
            self.store.pass_days(float(self.rng.choice([0.01, 0.1, 1.0])))
        if self.dirty and not self.lost:
            self.dirty = False
            self.check()

    def check(self) -> None:
        names = self.store.names()
        heads: dict[str, str] = {}
        for name in sorted(name for name in names if name.startswith("channels/")):
            heads[name.split("/")[1]] = name
        current = [json.loads(self.store._held[name].data)["release_id"] for name in heads.values()]
        held = [release for release, until in self.held.values() if until is None or self.store.now < until]
        for release in [*current, *held]:
            manifest = f"releases/{release}/manifest.json"
            if manifest in names and release not in self.named:
                document = json.loads(self.store._held[manifest].data)
                self.named[release] = [document["files"][role]["name"] for role in document["files"]]
                self.named[release] += [part["name"] for part in document["parts"]]
            gone = {manifest, *self.named.get(release, [])} - names
            if gone:
                self.lost = f"{release} has lost {sorted(gone)[0]}"

    def work(self, worker: int) -> None:
        for number in range(1000):
            run, expiring, store = f"w{worker}-{number}", self.expiring, self.store
            expiring.begin(store, run)
            try:
                head = self.head()
                parent = read_manifest(store, head.release_id)
                carried = [one for one in parent.parts if self.rng.random() < 0.7]
                store.put(
                    f"runs/{run}/plan.parquet", expiring.plan([one.name for one in carried], parent=head.release_id)
                )
                # Its key comes back after a while, as that of a photo does that goes back to what it was.
                key = int(self.rng.integers(12))
                made = expiring.part(store, f"latents/m/k{key}.parquet", f"part {key}".encode() * 20)
                store.put(f"runs/{run}/heartbeats/1", b"{}")
                parts = list({one.name: one for one in [*carried, made]}.values())
                written = expiring.release(store, run, parts, parent=head.release_id)
                expiring.publish(
                    store, "stable", expected_head=head.number, release_id=written.manifest.release_id,
                    manifest_sha256=written.manifest_sha256, run=run, attempt=1,
                )  # fmt: skip
                self.published += 1
            except CodebooksError:
                pass
            if self.rng.random() < 0.6:  # else it was killed
                expiring.end(store, run)

    def head(self) -> ChannelEntry:
        found = read_head(self.store, "stable")
        assert found is not None
        return found

    def read(self) -> None:
        key = object()
        while True:
            try:
                lease = take_lease(self.store, self.head().release_id, owner="feed", ttl_s=86_400 * 9)
            except (NotFound, Unavailable):
                continue
            for _ in range(int(self.rng.integers(4))):
                # From the call's own time on; the store's object is not older.
                self.held[key] = (lease.release_id, self.store.now + 8 * DAYS)
                self.dirty = True
                try:
                    lease.renew()
                except (NotFound, Unavailable):
                    break
            self.held.pop(key, None)
            lease.close()

    def pins(self) -> None:
        while True:
            log = read_log(self.store, "stable", last=12)
            release = log[int(self.rng.integers(len(log)))].release_id
            try:
                pin(self.store, release, owner="me", reason="")
            except (NotFound, Unavailable):
                continue
            self.held["pin"] = (release, None)
            self.dirty = True
            for _ in range(int(self.rng.integers(60))):
                self.store.stat("store.json")
            del self.held["pin"]
            unpin(self.store, release, owner="me")

    def moves(self) -> None:
        while True:
            try:
                log = read_log(self.store, "stable", last=8)
                rollback(self.store, "stable", to=log[int(self.rng.integers(len(log)))].release_id)
                if self.rng.random() < 0.3:
                    promote(self.store, "stable", "canary")
            except CodebooksError:
                pass
            for _ in range(int(self.rng.integers(200))):
                self.store.stat("store.json")

    def expires(self) -> None:
        while True:
            with contextlib.suppress(Conflict, Unavailable):
                expire(self.store, Policy(keep=1, keep_days=0, max_share=1.0), yes=True)


def lived(expiring: Any, monkeypatch: pytest.MonkeyPatch, seed: int, steps: int = 4000) -> World:
    store = expiring.ClockStore("memory://expiry")
    # A grace far below what these runs, which may sleep for days between two calls, would be given.
    monkeypatch.setattr(expiry_room, "grace_of", lambda policy, runs: 0.5 * DAYS)
    monkeypatch.setattr(expiry_room, "ThreadPoolExecutor", Serial)
    monkeypatch.setattr(expiry_room, "elapsed", lambda: float(store.now.timestamp()))
    monkeypatch.setattr(holds_room, "_APPEND_S", 90 * 86_400.0)  # here an entry may take weeks to be written
    world = World(expiring, store, seed)
    world.turns.run(steps)
    assert world.turns.errors == [], world.turns.errors
    return world


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 151])  # 151: a sweep wakes up while another has its number
def test_nothing_readable_is_ever_deleted(expiring: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    world = lived(expiring, monkeypatch, seed)
    assert world.lost == ""
    assert world.swept > 0
    assert world.published > 0


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["pins", "sweeps"])
def test_the_check_catches_an_expiry_that_ignores(expiring: Any, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    if broken == "pins":
        monkeypatch.setattr(roots_room, "read_holds", lambda store, entries: [])
    else:
        monkeypatch.setattr(holds_room, "read_sweeps", lambda store: [])
    assert any(lived(expiring, monkeypatch, seed).lost for seed in range(10))
