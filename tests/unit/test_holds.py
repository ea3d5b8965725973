"""Pins and leases: what keeps a release, and how they stay clear of a sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs.__main__ import main
from pipeline.errors import ConfigError, IntegrityError, NotFound, Unavailable
from pipeline.release import holders, pin, publish, read_head, read_log, rollback, take_lease, unpin
from pipeline.release.holds import LEASES, PINS, SWEEPS, Sweep, read_holds
from pipeline.release.manifest import document_bytes
from pipeline.release.marked import Judged, write_marked
from pipeline.storage import Store, open_store
from pipeline.storage.memory import SPACES, MemoryStore


@pytest.fixture
def store(maker: Any) -> Iterator[Store]:
    """Two releases, mon and tue, on `stable`."""
    made = MemoryStore("memory://holds")
    for run in ("mon", "tue"):
        maker.make_release(made, maker.some_photos(5), run=run)
    yield made
    SPACES.pop("holds", None)


MON, TUE = "mon-0123456789ab", "tue-0123456789ab"


def swept(store: Store, *releases: str, names: tuple[str, ...] = ()) -> None:
    """Write what a sweep writes before it deletes."""
    listed, digest = write_marked(store, [Judged(store.stat(name), False, "") for name in names])
    sweep = Sweep(holder="x", mark="expiry/marks/x.json", listed=listed, sha256=digest, releases=releases)
    store.put(f"{SWEEPS}000000000001.json", document_bytes(sweep))


def held(store: Store) -> list[str]:
    return [entry.name for prefix in (PINS, LEASES) for entry in store.list(prefix)]


def test_a_pin_is_written_once_and_taken_away(store: Store) -> None:
    until = datetime.now(UTC) + timedelta(days=3)
    made = pin(store, MON, owner="ranking", reason="a trial", until=until)
    assert pin(store, MON, owner="ranking", reason="a trial", until=until) == made
    with pytest.raises(ConfigError, match="ranking has pinned mon-0123456789ab already, until"):
        pin(store, MON, owner="ranking", reason="a trial")
    pin(store, MON, owner="search", reason="")
    assert holders(store) == {MON: ["ranking", "search"]}
    (found, other) = read_holds(store, list(store.list(PINS)))
    assert (found.document, other.document.release_id) == (made, MON)
    assert unpin(store, MON, owner="ranking") is True
    assert unpin(store, MON, owner="ranking") is False
    assert holders(store) == {MON: ["search"]}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"owner": "a/b"}, ConfigError, "'a/b' is no owner"),
        ({"until": datetime(2020, 1, 1, tzinfo=UTC)}, ConfigError, "which is past"),
        ({"until": datetime(2990, 1, 1)}, ConfigError, "of no time zone"),  # noqa: DTZ001 - that is what is tried
        ({"release": "nope"}, NotFound, "no release 'nope'"),
        ({"release": "../stable"}, ConfigError, "no release's id"),
    ],
)
def test_a_pin_that_cannot_be(store: Store, given: dict[str, Any], error: type[Exception], text: str) -> None:
    asked = {"release": MON, "owner": "me", "reason": "", "until": None, **given}
    with pytest.raises(error, match=text):
        pin(store, asked.pop("release"), **asked)
    assert held(store) == []


@pytest.mark.parametrize("other", [{"only_if": "full moon"}, {"until": "2990-01-01T00:00:00"}])
def test_a_hold_that_nobody_understands_is_an_error(store: Store, other: dict[str, str]) -> None:
    pin(store, MON, owner="me", reason="")
    (name,) = held(store)
    store.put(name, json.dumps({**json.loads(store.get(name)), **other}).encode())
    with pytest.raises(IntegrityError, match=f"{name} cannot be understood, so nothing expires"):
        read_holds(store, list(store.list(PINS)))


def test_a_lease_is_renewed_under_new_names(store: Store) -> None:
    lease = take_lease(store, MON, owner="feed", ttl_s=60)
    (first,) = held(store)
    lease.renew()
    (second,) = held(store)
    assert first != second
    assert holders(store) == {MON: ["feed (lease)"]}
    lease.close()
    assert held(store) == []


def test_nothing_is_held_that_a_sweep_is_deleting(store: Store) -> None:
    lease = take_lease(store, MON, owner="feed", ttl_s=60)
    lease.close()
    swept(store, MON)
    for hold in (
        lambda: pin(store, MON, owner="me", reason=""),
        lambda: take_lease(store, MON, owner="feed"),
        lease.renew,
        lambda: rollback(store, "stable"),
    ):
        with pytest.raises(Unavailable, match="release mon-0123456789ab is on the list"):
            hold()
    assert held(store) == []
    pin(store, TUE, owner="me", reason="")
    assert len(read_log(store, "stable")) == 2


def test_no_log_names_a_release_of_whose_files_a_sweep_is_deleting_one(store: Store) -> None:
    head = read_head(store, "stable")
    assert head is not None
    (part,) = [entry.name for entry in store.list("latents/") if "tue-0" in entry.name]

    def again() -> Any:
        return publish(store, "stable", expected_head=2, release_id=TUE, manifest_sha256=head.manifest_sha256,
                       run="tue", attempt=1)  # fmt: skip

    swept(store, "another", names=(part,))
    with pytest.raises(Unavailable, match=part):
        again()
    store.delete(f"{SWEEPS}000000000001.json")
    whole = store.get(part)
    store.delete(part)
    with pytest.raises(IntegrityError, match=part):
        again()
    store.put(part, whole)
    assert again().number == 3
    assert held(store) == []


def test_pins_by_command(maker: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(tmp_path / "store"))
    release = maker.make_release(store, maker.some_photos(3)).release_id
    place = f"store={store.url}"
    assert main(["pin", release, "--owner", "ranking", "--until", "2099-01-31", "--reason", "trial", place]) == 0
    capsys.readouterr()
    assert main(["releases", place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["releases"][0]["pins"] == ["ranking"]
    assert main(["unpin", release, "--owner", "ranking", place]) == 0
    assert main(["pin", "nope", place]) == 3
    assert holders(store) == {}
