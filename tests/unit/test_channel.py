"""The channel log: one winner, whole releases for every reader, rollback and promotion that only append."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, Conflict, InputError, IntegrityError, NotFound, Unavailable
from pipeline.release import (
    WrittenRelease,
    manifest_name,
    promote,
    publish,
    read_head,
    read_log,
    rollback,
    write_release,
)
from pipeline.release.channel import entry_name
from pipeline.release.manifest import document_bytes
from pipeline.schema import items_schema
from pipeline.storage import Store, open_store

ROOT = Path(__file__).resolve().parents[2]
RACERS = 8

# Publishes what it is told on standard input and answers with one JSON line each.
PUBLISHER = """
import json, sys
from pipeline.errors import Conflict
from pipeline.release import publish
from pipeline.storage import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        entry = publish(store, "stable", **json.loads(line))
        print(json.dumps({"won": entry.number}), flush=True)
    except Conflict as error:
        print(json.dumps({"lost": str(error)}), flush=True)
"""

# Polls the channel until told to stop, one line a read; every release that it meets must be whole.
READER = """
import json, sys, threading
from pipeline.release import read_head, verify_release
from pipeline.storage import open_store
store = open_store(sys.argv[1])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("ready", flush=True)
while not stop.is_set():
    read = {"head": None, "failures": []}
    try:
        head = read_head(store, "stable")
        if head is None:
            continue
        check = verify_release(store, head.release_id, expect_sha256=head.manifest_sha256)
        read = {"head": head.number, "failures": list(check.problems)}
    except Exception as error:
        read["failures"] = [repr(error)]
    print(json.dumps(read), flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that several processes share."""
    if request.param == "local":
        return str(tmp_path / "store")
    bucket: str = request.getfixturevalue("s3_server").make_bucket(f"channel-{uuid.uuid4().hex[:8]}")
    return f"{bucket}/visual"


def make_release(store: Store, name: str, run: str = "night", attempt: int = 1) -> WrittenRelease:
    """Write a release of one small file that is all its own."""
    return write_release(
        store,
        release_id=name,
        files={"index": (name.encode() * 3, ".faiss", 1), "items": (no_items(), ".parquet", 0)},
        parts=(),
        release_key="0" * 64,
        run=run,
        attempt=attempt,
        parent=None,
        model_id="m",
        model_kind="vae",
        latent_dim=3,
        transform_id="t",
        metric="l2",
        index_kind="flat",
        code_version="0",
    )


def no_items() -> bytes:
    sink = io.BytesIO()
    pq.write_table(items_schema([]).empty_table(), sink)
    return sink.getvalue()


def publish_new(store: Store, name: str, *, head: int, channel: str = "stable", **changes: Any) -> Any:
    written = make_release(store, name, **changes)
    return publish(
        store,
        channel,
        expected_head=head,
        release_id=name,
        manifest_sha256=written.manifest_sha256,
        run=written.manifest.run,
        attempt=written.manifest.attempt,
    )


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


def test_entries_lie_under_twelve_digits(store: Store) -> None:
    entry = publish_new(store, "night-a", head=0)
    root = Path(store.url.removeprefix("file://"))
    stored = json.loads((root / "channels/stable/000000000001.json").read_text())
    assert stored == json.loads(entry.model_dump_json())
    assert (stored["number"], stored["release_id"], stored["reason"]) == (1, "night-a", "publish")
    publish_new(store, "night-b", head=1)
    assert sorted(path.name for path in (root / "channels/stable").iterdir()) == [
        "000000000001.json",
        "000000000002.json",
    ]
    head = read_head(store, "stable")
    assert head is not None
    assert head.release_id == "night-b"
    assert [entry.number for entry in read_log(store, "stable")] == [1, 2]


def test_an_empty_channel_has_no_head(store: Store) -> None:
    assert read_head(store, "stable") is None
    assert read_log(store, "stable") == []


def test_the_highest_number_is_current_even_past_ten(store: Store) -> None:
    for number in range(11):
        publish_new(store, f"night-{number}", head=number)
    head = read_head(store, "stable")
    assert head is not None
    assert (head.number, head.release_id) == (11, "night-10")


def test_a_stale_plan_cannot_publish_and_learns_who_won(store: Store) -> None:
    publish_new(store, "night-a", head=0)
    publish_new(store, "other-b", head=1, run="other", attempt=3)
    with pytest.raises(Conflict) as caught:
        publish_new(store, "night-c", head=1)
    text = str(caught.value)
    assert all(part in text for part in ("'other'", "'other-b'", "attempt 3", "entry 2", "'stable'"))
    assert caught.value.exit_code == 5
    assert [entry.release_id for entry in read_log(store, "stable")] == ["night-a", "other-b"]


def test_publishing_the_same_release_again_is_done(store: Store) -> None:
    first = publish_new(store, "night-a", head=0)
    assert publish_new(store, "night-a", head=0) == first
    publish_new(store, "night-b", head=1)
    assert publish_new(store, "night-a", head=0) == first  # it had won, whatever came later
    assert len(read_log(store, "stable")) == 2


def test_a_release_that_is_not_there_cannot_be_published(store: Store) -> None:
    digest = make_release(store, "night-a").manifest_sha256
    arguments: dict[str, Any] = {"expected_head": 0, "run": "night", "attempt": 1}
    with pytest.raises(NotFound):
        publish(store, "stable", release_id="nope", manifest_sha256=digest, **arguments)
    with pytest.raises(IntegrityError):
        publish(store, "stable", release_id="night-a", manifest_sha256="0" * 64, **arguments)
    assert read_head(store, "stable") is None


def test_a_gap_in_the_log_is_refused(store: Store) -> None:
    with pytest.raises(IntegrityError, match="no entry 4"):
        publish_new(store, "night-a", head=4)
    assert read_head(store, "stable") is None


def test_a_newer_store_is_not_published_to(store: Store) -> None:
    written = make_release(store, "night-a")
    store.put("store.json", b'{"format": 2}')
    with pytest.raises(InputError, match="upgrade"):
        publish(store, "stable", expected_head=0, release_id="night-a", manifest_sha256=written.manifest_sha256,
                run="night", attempt=1)  # fmt: skip


@pytest.mark.parametrize("channel", ["", "Stable", "a/b", "../stable", "-x", "x" * 65, "stable\n"])
def test_bad_channel_names(store: Store, channel: str) -> None:
    with pytest.raises(ConfigError, match="no channel name"):
        read_head(store, channel)


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b'{"number": 1}'])
def test_a_damaged_entry_is_an_error(store: Store, data: bytes) -> None:
    store.put("channels/stable/000000000001.json", data)
    with pytest.raises(IntegrityError, match="000000000001"):
        read_head(store, "stable")


def test_an_entry_under_another_number_is_an_error(store: Store) -> None:
    publish_new(store, "night-a", head=0)
    store.put("channels/stable/000000000005.json", store.get("channels/stable/000000000001.json"))
    with pytest.raises(IntegrityError, match="says that it is number 1"):
        read_head(store, "stable")


def test_names_that_are_no_entries_are_passed_over(store: Store) -> None:
    publish_new(store, "night-a", head=0)
    store.put("channels/stable/README.txt", b"hands off")
    store.put("channels/stable-old/000000000009.json", b"{}")
    head = read_head(store, "stable")
    assert head is not None
    assert head.number == 1


def test_rollback_goes_one_further_back_each_time(store: Store) -> None:
    for number, name in enumerate(["a", "b", "c"]):
        publish_new(store, name, head=number)
    assert rollback(store, "stable").release_id == "b"
    assert rollback(store, "stable").release_id == "a"
    with pytest.raises(ConfigError, match="no release before 'a'"):
        rollback(store, "stable")
    log = read_log(store, "stable")
    assert [entry.release_id for entry in log] == ["a", "b", "c", "b", "a"]
    assert [entry.reason for entry in log] == ["publish"] * 3 + ["rollback"] * 2
    assert log[3].manifest_sha256 == log[1].manifest_sha256
    publish_new(store, "d", head=5)
    assert rollback(store, "stable").release_id == "a"  # what was current when d came


def test_rollback_to_a_named_release(store: Store) -> None:
    for number, name in enumerate(["a", "b", "c"]):
        publish_new(store, name, head=number)
    assert rollback(store, "stable", to="a").number == 4
    assert rollback(store, "stable", to="a").number == 4  # current already: nothing is written
    make_release(store, "never-published", run="manual", attempt=2)
    entry = rollback(store, "stable", to="never-published")
    assert (entry.run, entry.attempt, entry.reason) == ("manual", 2, "rollback")
    with pytest.raises(NotFound, match="no release 'gone'"):
        rollback(store, "stable", to="gone")
    assert rollback(store, "stable").release_id == "a"
    with pytest.raises(NotFound, match="nothing to roll back"):
        rollback(store, "canary")


def test_rollback_refuses_a_release_that_was_changed(store: Store) -> None:
    publish_new(store, "a", head=0)
    publish_new(store, "b", head=1)
    name = manifest_name("a")
    store.put(name, store.get(name).replace(b'"attempt":1', b'"attempt":2'))
    with pytest.raises(IntegrityError, match="changed after"):
        rollback(store, "stable")
    assert len(read_log(store, "stable")) == 2


def test_promote_appends_to_the_other_channel(store: Store) -> None:
    with pytest.raises(NotFound, match="canary"):
        promote(store, "canary", "stable")
    publish_new(store, "a", head=0, channel="canary")
    first = promote(store, "canary", "stable")
    assert (first.number, first.release_id, first.reason) == (1, "a", "promote")
    assert promote(store, "canary", "stable") == first
    publish_new(store, "b", head=1, channel="canary")
    assert promote(store, "canary", "stable").number == 2
    assert rollback(store, "stable").release_id == "a"
    assert len(read_log(store, "canary")) == 2


def interrupted(store: Store, ending: str, before: Any = None, *, lose_reply: bool = False) -> Store:
    """Return the store, but `before` runs in front of a write of this name, and the write's reply may be lost."""
    broken = copy.copy(store)

    def put_if_absent(name: str, data: bytes) -> bool:
        if name.endswith(ending) and before is not None:
            before()
        won = store.put_if_absent(name, data)
        if name.endswith(ending) and lose_reply:
            raise Unavailable(f"no reply for {name}; try again")
        return won

    broken.put_if_absent = put_if_absent  # type: ignore[method-assign]
    return broken


def test_a_lost_reply_is_found_to_be_a_win(store: Store) -> None:
    with pytest.raises(Unavailable) as caught:
        publish_new(interrupted(store, "01.json", lose_reply=True), "night-a", head=0)
    assert caught.value.exit_code == 6
    entry = publish_new(store, "night-a", head=0, attempt=2)  # the retry: a new attempt, the same release
    assert (entry.number, entry.attempt) == (1, 1)
    assert len(read_log(store, "stable")) == 1


def test_a_publish_during_a_rollback_is_a_conflict(store: Store) -> None:
    publish_new(store, "a", head=0)
    publish_new(store, "b", head=1)
    meanwhile = interrupted(store, "03.json", lambda: publish_new(store, "c", head=2, run="nightly"))
    with pytest.raises(Conflict, match="'nightly'"):
        rollback(meanwhile, "stable")
    assert [entry.release_id for entry in read_log(store, "stable")] == ["a", "b", "c"]
    assert rollback(store, "stable").release_id == "b"


def test_a_rollback_during_a_refresh_wins(store: Store) -> None:
    publish_new(store, "a", head=0)
    publish_new(store, "b", head=1)
    rollback(store, "stable")
    with pytest.raises(Conflict, match="the rollback of release 'a'"):
        publish_new(store, "c", head=2)


@pytest.mark.slow
def test_eight_processes_race_and_one_wins_each_round(any_url: str, racers: Any) -> None:
    store = open_store(any_url)
    rounds = 12 if "://" not in any_url else 6
    releases = [make_release(store, f"racer-{racer}", run=f"run-{racer}") for racer in range(RACERS)]
    winners = []
    with racers(PUBLISHER, RACERS, any_url) as racing:
        for head in range(rounds):
            # Each racer has its turn to be told first.
            for turn in range(RACERS):
                number = (turn + head) % RACERS
                manifest, digest = releases[number]
                told = {"expected_head": head, "release_id": manifest.release_id, "manifest_sha256": digest}
                racing.say(number, json.dumps({**told, "run": manifest.run, "attempt": 1}))
            answers = [json.loads(line) for line in racing.lines()]
            won = [number for number, answer in enumerate(answers) if "won" in answer]
            assert len(won) == 1, answers
            assert answers[won[0]] == {"won": head + 1}
            for number, answer in enumerate(answers):
                if number != won[0]:
                    assert f"'run-{won[0]}'" in answer["lost"]
                    assert f"'racer-{won[0]}'" in answer["lost"]
            winners.append(won[0])
    assert [entry.release_id for entry in read_log(store, "stable")] == [f"racer-{number}" for number in winners]


class Polling:
    """What a reader in a process of its own has seen so far: the heads of its reads, and what was not whole."""

    def __init__(self, url: str) -> None:
        self.heads: list[int] = []
        self.failures: list[str] = []
        self._reader = script(READER, url)
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Polling:
        assert line_of(self._reader) == "ready"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._reader.stdin is not None
        self._reader.stdin.close()  # which stops it
        self._thread.join(timeout=120)
        with self._reader:  # closes its pipes
            assert self._reader.wait(timeout=120) == 0

    def _listen(self) -> None:
        assert self._reader.stdout is not None
        for line in self._reader.stdout:
            read = json.loads(line)
            self.failures += read["failures"]
            if read["head"] is not None:
                self.heads.append(read["head"])


@pytest.mark.slow
def test_a_reader_sees_only_whole_releases(any_url: str) -> None:
    store, head = open_store(any_url), 0
    with Polling(any_url) as seen:
        # Until the reader has had its turns, however busy the machine is; both take them as fast as they can.
        while len(set(seen.heads)) < 12 or len(seen.heads) < 24:
            if head % 3 == 2:
                rollback(store, "stable")
            else:
                publish_new(store, f"night-{head}", head=head)
            head += 1
            assert head < 2000, seen.heads
    assert seen.failures == []
    assert seen.heads == sorted(seen.heads)
    assert len(read_log(store, "stable")) == head


@pytest.mark.slow
def test_the_reader_catches_a_publisher_that_names_too_early(tmp_path: Path) -> None:
    """The negative control of the test above: the log names a release before its last file is there."""
    store = open_store(str(tmp_path / "store"))
    publish_new(store, "whole", head=0)
    written = make_release(store, "hasty")
    index = written.manifest.file("index").name
    data = store.get(index)
    line = read_log(store, "stable")[0].model_copy(
        update={"release_id": "hasty", "manifest_sha256": written.manifest_sha256}
    )
    store.delete(index)
    with pytest.raises(IntegrityError, match=index):
        publish(store, "stable", expected_head=1, release_id="hasty",
                manifest_sha256=written.manifest_sha256, run="night", attempt=1)  # fmt: skip

    with Polling(str(tmp_path / "store")) as seen:
        for head in range(1, 1000):
            store.delete(index)
            if head % 2:  # as a publisher would do that does not look first
                hasty = line.model_copy(update={"number": head + 1})
                assert store.put_if_absent(entry_name("stable", head + 1), document_bytes(hasty))
            else:
                rollback(store, "stable", to="whole")
            time.sleep(0.05)  # the upload of a large index takes longer
            store.put(index, data)
            if seen.failures:
                break
    assert any("is missing" in failure for failure in seen.failures)
