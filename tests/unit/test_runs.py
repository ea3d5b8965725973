"""Attempts of a run: who holds it, who takes over, what is frozen, and that a zombie learns of its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, Conflict, InputError, IntegrityError, Unavailable
from pipeline.runs import Attempt, Lookout, Run, Timing, check_run_name, default_run_name, open_run
from pipeline.storage import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "model: {kind: vae, latent_dim: 16}\ntrain: {epochs: 10}\n"
QUICK = Timing(renew_s=0.1, stale_s=30.0, wait_s=0.5, poll_s=0.05)

# Holds a run and waits to be killed.
HOLDER = """
import sys, time
from pipeline.runs import Timing, open_run
from pipeline.storage import open_store
with open_run(open_store(sys.argv[1]), "night", timing=Timing(renew_s=0.1)).begin(sys.argv[2]) as attempt:
    print(attempt.number, flush=True)
    time.sleep(120)
"""

# Begins a run at the moment it is told to, and says which attempt it became.
NEWCOMER = """
import sys
from pipeline.errors import Unavailable
from pipeline.runs import Timing, open_run
from pipeline.storage import open_store
run = open_run(open_store(sys.argv[1]), sys.argv[2], timing=Timing(wait_s=0.0))
print("ready", flush=True)
sys.stdin.readline()
try:
    attempt = run.begin("a: 1")
    print(attempt.number, flush=True)
    sys.stdin.readline()  # stays alive, as a live holder does, until its input ends
except Unavailable as error:
    print("held", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that several processes share."""
    if request.param == "local":
        return str(tmp_path / "store")
    bucket: str = request.getfixturevalue("s3_server").make_bucket(f"runs-{uuid.uuid4().hex[:8]}")
    return f"{bucket}/visual"


def script(text: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"the process ended: {process.communicate()[1][-2000:]}")
    return line.strip()


def held_elsewhere(store: Store, **changes: Any) -> Run:
    """Return a run whose attempt 1 is a process of another machine."""
    record: dict[str, Any] = {
        "attempt": 1,
        "host": "worker-17",
        "boot_id": "another",
        "pid": 4711,
        "pid_started": "1",
        "created": datetime.now(UTC).isoformat(),
    }
    run = open_run(store, "night", timing=QUICK)
    store.put(run.attempt_name(1), json.dumps({**record, **changes}).encode())
    store.put("runs/night/config.yaml", CONFIG.encode())
    return run


def age(store: Store, name: str, seconds: float) -> None:
    """Make a stored object of a local store look older."""
    path = Path(store.url.removeprefix("file://")) / name
    then = time.time() - seconds
    os.utime(path, (then, then))


def until(reached: Callable[[], bool], within_s: float = 200.0) -> None:
    """Wait for something that happens soon, and a little later on a busy machine."""
    deadline = time.monotonic() + within_s
    while not reached():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_first_attempt_says_who_it_is(store: Store) -> None:
    began = datetime.now(UTC)
    with open_run(store, "night").begin(CONFIG) as attempt:
        attempt.check()
        root = Path(store.url.removeprefix("file://"))
        record = json.loads((root / "runs/night/attempts/1.json").read_text())
        assert record["attempt"] == attempt.number == 1
        assert record["host"] == socket.gethostname()
        assert record["pid"] == os.getpid()
        stat = Path("/proc/self/stat").read_text()
        assert record["pid_started"] == stat[stat.rindex(")") :].split()[20]
        assert abs(datetime.fromisoformat(record["created"]) - began) < timedelta(seconds=60)
        assert json.loads((root / "runs/night/heartbeats/1").read_text()) == {"attempt": 1, "ended": False}
        assert (root / "runs/night/config.yaml").read_text() == CONFIG
        assert json.loads((root / "store.json").read_text()) == {"format": 1}


def test_an_attempt_that_ended_is_followed_at_once(store: Store) -> None:
    slow = Timing(stale_s=1000, wait_s=0.0)
    with open_run(store, "night", timing=slow).begin(CONFIG):
        pass
    with pytest.raises(InputError), open_run(store, "night", timing=slow).begin(CONFIG):
        raise InputError("no such table")
    with open_run(store, "night", timing=slow).begin(CONFIG) as attempt:
        assert attempt.number == 3


def test_the_heartbeat_is_renewed_while_the_attempt_works(store: Store) -> None:
    with open_run(store, "night", timing=QUICK).begin(CONFIG):
        first = store.stat("runs/night/heartbeats/1").modified
        until(lambda: store.stat("runs/night/heartbeats/1").modified > first)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat-night"]


def test_a_living_holder_is_waited_for_and_then_named(store: Store) -> None:
    run = held_elsewhere(store)
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": false}')
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        run.begin(CONFIG)
    assert 0.5 <= time.monotonic() - began < 200
    assert caught.value.exit_code == 6
    assert all(part in str(caught.value) for part in ("'worker-17'", "pid 4711", "'night'", "attempt 1"))
    assert run.highest_attempt() == 1


def test_a_holder_that_lets_go_while_waited_for_is_followed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(store, "night", timing=Timing(renew_s=0.1, stale_s=1000, wait_s=500, poll_s=0.05))
    looked, sleep = threading.Event(), time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: looked.set() or sleep(seconds))  # between two looks
    with open_run(store, "night", timing=QUICK).begin(CONFIG) as first:
        numbers: list[int] = []
        newcomer = threading.Thread(target=lambda: numbers.append(run.begin(CONFIG).number))
        newcomer.start()
        assert looked.wait(200)
        assert run.highest_attempt() == first.number
    newcomer.join(timeout=200)
    assert numbers == [2]


def test_a_stale_heartbeat_is_taken_over_by_the_stores_clock(store: Store) -> None:
    run = held_elsewhere(store)
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": false}')
    age(store, "runs/night/attempts/1.json", 3600)
    with pytest.raises(Unavailable):
        run.begin(CONFIG)  # the record is old, the heartbeat is not
    age(store, "runs/night/heartbeat", 40)
    assert run.begin(CONFIG).number == 2


def test_the_heartbeat_of_an_older_attempt_is_no_life_sign(store: Store) -> None:
    run = held_elsewhere(store)
    store.put(run.attempt_name(2), store.get(run.attempt_name(1)).replace(b'"attempt": 1', b'"attempt": 2'))
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": true}')
    with pytest.raises(Unavailable, match="attempt 2"):
        run.begin(CONFIG)  # attempt 2 has only just begun; that attempt 1 has ended says nothing of it
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": false}')
    age(store, "runs/night/attempts/2.json", 40)
    assert run.begin(CONFIG).number == 3


def test_a_wrong_clock_of_this_machine_does_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = held_elsewhere(store, created="2001-01-01T00:00:00Z")
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": false}')
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(Unavailable):
        run.begin(CONFIG)


@pytest.mark.slow
def test_a_killed_holder_of_this_host_is_followed_at_once(any_url: str) -> None:
    holder = script(HOLDER, any_url, CONFIG)
    assert line_of(holder) == "1"
    run = open_run(open_store(any_url), "night", timing=Timing(stale_s=1000, wait_s=0.0))
    with pytest.raises(Unavailable, match=rf"pid {holder.pid}\b"):
        run.begin(CONFIG)
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    began = time.monotonic()
    with run.begin(CONFIG) as attempt:  # nobody has reaped the killed process yet: it is a zombie of this test
        assert attempt.number == 2
        assert time.monotonic() - began < 500  # and not after the 1000 s that the heartbeat may be old
    holder.communicate()
    assert run.begin(CONFIG).number == 3


def test_a_pid_that_was_given_to_another_process_is_dead(store: Store) -> None:
    with open_run(store, "night").begin(CONFIG):
        mine = json.loads(store.get("runs/night/attempts/1.json"))
    other = open_run(store, "other", timing=Timing(stale_s=1000, wait_s=0.0))
    store.put(other.attempt_name(1), json.dumps({**mine, "pid_started": "17"}).encode())
    assert other.begin(CONFIG).number == 2
    same = open_run(store, "same", timing=Timing(stale_s=1000, wait_s=0.0))
    store.put(same.attempt_name(1), json.dumps(mine).encode())
    with pytest.raises(Unavailable):
        same.begin(CONFIG)


def test_a_pid_of_another_boot_says_nothing(store: Store) -> None:
    run = held_elsewhere(store, host=socket.gethostname(), pid=2**22 - 1)
    with pytest.raises(Unavailable):
        run.begin(CONFIG)


def zombie_and_successor(store: Store) -> tuple[Attempt, Attempt]:
    """Return an attempt that slept through its own end, and the one that took over."""
    run = open_run(store, "night", timing=QUICK)
    zombie = run.begin(CONFIG)  # never entered: its heartbeat stands still, as under SIGSTOP
    age(store, "runs/night/heartbeats/1", 100)
    age(store, "runs/night/attempts/1.json", 100)
    return zombie, run.begin(CONFIG)


def test_a_zombie_learns_that_it_was_superseded(store: Store) -> None:
    zombie, successor = zombie_and_successor(store)
    assert successor.number == 2
    successor.check()
    with pytest.raises(Conflict) as caught:
        zombie.check()
    assert caught.value.exit_code == 5
    assert f"pid {os.getpid()}" in str(caught.value)
    assert "attempt 2" in str(caught.value)


def test_a_zombie_does_not_touch_the_heartbeat(store: Store) -> None:
    zombie, _successor = zombie_and_successor(store)
    before = store.stat("runs/night/heartbeats/1").modified
    with zombie:
        time.sleep(0.3)
    assert store.stat("runs/night/heartbeats/1").modified == before
    assert json.loads(store.get("runs/night/heartbeats/2")) == {"attempt": 2, "ended": False}


class SlowPuts:
    """Wraps a store's `put`: chosen names stay on their way until `land` is called."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held: list[tuple[str, bytes]] = []
        self.holds: Callable[[str], bool] = lambda name: False
        self._put = store.put
        monkeypatch.setattr(store, "put", self._later)

    def _later(self, name: str, data: bytes) -> None:
        if self.holds(name):
            self.held.append((name, data))
        else:
            self._put(name, data)

    def land(self) -> None:
        """Let what is on its way arrive, now."""
        for name, data in self.held:
            self._put(name, data)
        self.held.clear()


def test_a_heartbeat_that_lands_after_the_end_does_not_hide_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowPuts(store, monkeypatch)
    run = open_run(store, "night", timing=Timing(renew_s=0.05, stale_s=1000, wait_s=0.0))
    with run.begin(CONFIG):
        slow.holds = lambda name: "heartbeat" in name
        until(lambda: len(slow.held) > 0)
    slow.land()
    assert run.begin(CONFIG).number == 2  # at once, not when the heartbeat has become stale


def test_a_heartbeat_that_lands_after_a_takeover_hides_nobodys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = held_elsewhere(store)
    slow = SlowPuts(store, monkeypatch)
    slow.holds = lambda name: "heartbeat" in name
    Attempt(run, 1).renew()
    slow.holds = lambda name: False
    store.put(run.attempt_name(2), store.get(run.attempt_name(1)).replace(b'"attempt": 1', b'"attempt": 2'))
    age(store, "runs/night/attempts/2.json", 3600)  # it began an hour ago
    Attempt(run, 2).renew()  # and lives
    slow.land()  # attempt 1's, after attempt 2's
    with pytest.raises(Unavailable, match="attempt 2"):
        run.begin(CONFIG)
    age(store, "runs/night/heartbeats/2", 100)
    assert run.begin(CONFIG).number == 3


def test_an_end_that_an_older_version_wrote_is_read(store: Store) -> None:
    run = held_elsewhere(store)
    store.put("runs/night/heartbeat", b'{"attempt": 1, "ended": true}')
    assert run.begin(CONFIG).number == 2


def test_a_lookout_tells_of_a_newer_attempt_and_of_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lookout = Lookout(store, "runs/night", 1, every_s=0.0)
    lookout.check()  # no such run yet
    zombie, _successor = zombie_and_successor(store)
    Lookout(store, "runs/night/", 2).check()
    rare = Lookout(store, "runs/night", zombie.number, every_s=1000.0)
    with pytest.raises(Conflict, match="attempt 2"):
        rare.check()
    rare.check()  # it has just looked
    listed = store.list

    def away(prefix: str) -> Any:
        raise Unavailable("503")

    monkeypatch.setattr(store, "list", away)
    lookout.check()  # not known, which is not "superseded"
    monkeypatch.setattr(store, "list", listed)
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        lookout.check()


def test_an_attempt_whose_folder_was_deleted_stops(store: Store) -> None:
    attempt = open_run(store, "night").begin(CONFIG)
    store.delete("runs/night/attempts/1.json")
    with pytest.raises(Conflict, match="deleted"):
        attempt.check()


def test_the_heartbeat_outlives_a_store_that_is_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(store, "night", timing=QUICK)
    put = store.put
    away = threading.Event()
    refusals = 0

    def sometimes(name: str, data: bytes) -> None:
        nonlocal refusals
        if away.is_set():
            refusals += 1
            raise Unavailable("503")
        put(name, data)

    def once(name: str, data: bytes) -> bool:
        if away.is_set():
            raise Unavailable("503")
        return put_if_absent(name, data)

    put_if_absent = store.put_if_absent
    monkeypatch.setattr(store, "put", sometimes)
    monkeypatch.setattr(store, "put_if_absent", once)
    with run.begin(CONFIG) as attempt:
        away.set()
        until(lambda: refusals > 2)
        away.clear()
        before = store.stat("runs/night/heartbeats/1").modified
        until(lambda: store.stat("runs/night/heartbeats/1").modified > before)
        attempt.check()
        away.set()  # the last life sign fails too, and the body's result still counts
    assert not store.exists("runs/night/heartbeats/1.ended")


@pytest.mark.slow
def test_eight_newcomers_become_one_attempt(any_url: str, racers: Any) -> None:
    with racers(NEWCOMER, 8, any_url, "race") as newcomers:
        for newcomer in range(8):
            newcomers.say(newcomer, "go")
        answers = newcomers.lines()
    assert sorted(answers) == ["1"] + ["held"] * 7


def test_a_lost_reply_does_not_make_two_attempts_live(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put_if_absent = store.put_if_absent

    def no_reply(name: str, data: bytes) -> bool:
        won = put_if_absent(name, data)
        if "/attempts/" in name:
            raise Unavailable(f"no reply for {name}")
        return won

    monkeypatch.setattr(store, "put_if_absent", no_reply)
    with pytest.raises(Unavailable):
        open_run(store, "night").begin(CONFIG)
    monkeypatch.undo()
    # The record is there and names this living process: another machine would wait for it to go stale.
    with pytest.raises(Unavailable, match=f"pid {os.getpid()}"):
        open_run(store, "night", timing=QUICK).begin(CONFIG)


def test_frozen_documents_are_the_first_ones(store: Store) -> None:
    run = open_run(store, "night")
    first = run.begin(CONFIG)
    assert run.read_frozen("plan.parquet") is None
    assert first.freeze("plan.parquet", b"first") == b"first"
    assert run.freeze("plan.parquet", b"second") == b"first"
    assert run.read_frozen("plan.parquet") == b"first"


def test_another_config_under_the_same_name_is_shown_field_by_field(store: Store) -> None:
    with open_run(store, "night").begin(CONFIG):
        pass
    with pytest.raises(ConfigError) as caught:
        open_run(store, "night").begin("model: {kind: vqvae, num_codes: 64}\ntrain: {epochs: 10}\n")
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "model.kind: the run has 'vae', now 'vqvae'" in text
    assert "model.latent_dim: the run has 16, now nothing" in text
    assert "model.num_codes: the run has nothing, now 64" in text
    assert "epochs" not in text
    assert open_run(store, "night").highest_attempt() == 1


def test_the_same_config_in_another_order_is_the_same(store: Store) -> None:
    with open_run(store, "night").begin(CONFIG):
        pass
    with open_run(store, "night").begin("train:\n  epochs: 10\nmodel:\n  latent_dim: 16\n  kind: vae\n") as attempt:
        assert attempt.number == 2


def test_many_differences_are_cut(store: Store) -> None:
    with open_run(store, "night").begin(""):
        pass
    with pytest.raises(ConfigError, match="and 11 more"):
        open_run(store, "night").begin("\n".join(f"key{number}: 1" for number in range(30)))


def test_results_stand_once_they_say_published(store: Store) -> None:
    run = open_run(store, "night")
    assert run.read_result() is None
    run.write_result({"run": "night", "published": False, "reason": "trained"})
    assert run.write_result({"run": "night", "published": True, "reason": "published"})["published"] is True
    late = run.write_result({"run": "night", "published": False, "reason": "conflict"})
    assert late == run.read_result() == {"run": "night", "published": True, "reason": "published"}


@pytest.mark.parametrize("data", [b"", b"[1]", b"{"])
def test_damaged_documents_are_errors(store: Store, data: bytes) -> None:
    run = open_run(store, "night")
    store.put("runs/night/result.json", data)
    with pytest.raises(IntegrityError, match=r"result\.json"):
        run.read_result()
    store.put("runs/night/attempts/1.json", data)
    with pytest.raises(IntegrityError, match=r"attempts/1\.json"):
        run.begin(CONFIG)


def test_a_newer_store_is_refused(store: Store) -> None:
    store.put("store.json", b'{"format": 2}')
    with pytest.raises(InputError, match="upgrade"):
        open_run(store, "night").begin(CONFIG)
    assert [entry.name for entry in store.list()] == ["store.json"]


@pytest.mark.parametrize(
    "name",
    ["2026-11-21", "scheduled__2026-11-21T02:00:00+00:00", "a", pytest.param(default_run_name(), id="default")],
)
def test_run_names_of_schedulers_are_fine(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "../x", "a b", "x" * 129, "ü", "a\n"])
def test_bad_run_names(store: Store, name: str) -> None:
    with pytest.raises(ConfigError, match="no run name"):
        open_run(store, name)


def test_default_run_names_differ_and_sort_by_time() -> None:
    names = []
    for _ in range(5):
        names.append(default_run_name())
        time.sleep(0.001)
    assert names == sorted(set(names))
    assert all(re.fullmatch(r"\d{8}T\d{6}\.\d{6}Z", name) for name in names)
