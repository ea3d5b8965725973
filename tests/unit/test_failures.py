"""Failures of one photo, of its bucket or host, and of who asks: what each becomes, and where the night is stopped."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalogue import Failed, FailureLimits, homes_of
from pipeline.catalogue.failures import Failure, Failures
from pipeline.errors import (
    ClientRefused,
    ClientStale,
    CodebooksError,
    ConfigError,
    Forbidden,
    InputError,
    IntegrityError,
    Misconfigured,
    NotFound,
    SignatureRefused,
    Unavailable,
)
from pipeline.images import REASONS as DECODED
from pipeline.refusals import ASKED_REASONS, KEPT, REASONS
from pipeline.storage import Entry, Files, home_of

ROOT = Path(__file__).resolve().parents[2]


class Listing(Files):
    """Lists anything, or gives no answer at all."""

    def __init__(self, *, away: bool = False) -> None:
        super().__init__()
        self.away = away
        self.listings = 0

    def list(self, uri_prefix: str, *, after: str = "") -> Iterator[tuple[str, Entry]]:
        self.listings += 1
        if self.away:
            raise Unavailable(f"{uri_prefix}: no route")
        return iter(())


def raising(*errors: Exception) -> Any:
    """Return a question that raises these in turn, the last one for ever."""
    left = list(errors)

    def question() -> bytes:
        raise left.pop(0) if len(left) > 1 else left[0]

    return question


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotFound("gone"), "missing"),
        (Forbidden("HTTP 403 AccessDenied"), "forbidden"),
        (ConfigError("no address"), "bad_uri"),
        (InputError("HTTP 418"), "unreadable"),
        (IntegrityError("other bytes"), "changed"),
        (Unavailable("HTTP 503; 8 tries"), "unreachable"),
    ],
)
def test_a_photo_s_own_failure_has_its_word(error: CodebooksError, reason: str) -> None:
    assert Failures(Listing()).ask("s3://b/a", raising(error)) == Failure(reason, str(error))
    assert reason in ASKED_REASONS
    assert reason not in KEPT


@pytest.mark.parametrize("fault", [ClientStale, ClientRefused, Misconfigured])
def test_a_failure_of_who_asks_is_no_photo_s(fault: type[CodebooksError]) -> None:
    with pytest.raises(fault):
        Failures(Listing()).ask("s3://b/a", raising(fault("who are you")))


def test_one_refused_signature_is_a_photo_s_and_two_are_the_secret_s() -> None:
    failures = Failures(Listing())
    refused = raising(SignatureRefused("SignatureDoesNotMatch"))
    assert failures.ask("s3://b/a+b.jpg", refused) == Failure("forbidden", "SignatureDoesNotMatch")
    assert failures.ask("s3://b/a+b.jpg", refused) == Failure("forbidden", "SignatureDoesNotMatch"), "the same photo"
    assert failures.ask("s3://other/c.jpg", refused) == Failure("forbidden", "SignatureDoesNotMatch")
    with pytest.raises(SignatureRefused):
        failures.ask("s3://b/c.jpg", refused)


def test_a_refusal_is_asked_about_once_more() -> None:
    answers = [Forbidden("a slip"), b"photo"]

    def question() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert Failures(Listing()).ask("s3://b/a", question) == b"photo"


def test_a_bucket_that_answers_nothing_stops_the_night_and_one_that_lists_does_not() -> None:
    silent = raising(Unavailable("HTTP 503"))
    for files, asked, expected in ((Listing(away=True), 9, 0), (Listing(away=False), 100, 10)):
        failures = Failures(files)
        assert {failures.ask(f"s3://b/{n}", silent) for n in range(asked)} == {Failure("unreachable", "HTTP 503")}
        assert files.listings == expected
    failures = Failures(Listing(away=True))
    with pytest.raises(Unavailable, match=r"s3://b: no answer to 10 photos in a row, nor to a listing; last: HTTP 503"):
        [failures.ask(f"s3://b/{n}", silent) for n in range(10)]


def test_photos_answered_meanwhile_show_that_the_bucket_is_there() -> None:
    """The clock stands still but for the photo that is answered while the silent ones wait."""
    time = [0.0]
    failures = Failures(Listing(away=True), clock=lambda: time[0])

    def silent_while_another_is_answered() -> bytes:
        time[0] += 1
        assert failures.ask("s3://b/good", lambda: b"photo") == b"photo"
        raise Unavailable("HTTP 500")

    for number in range(50):
        assert failures.ask(f"s3://b/{number}", silent_while_another_is_answered) == Failure("unreachable", "HTTP 500")


def test_details_hold_no_secrets() -> None:
    error = InputError("https://me:pw@cdn/a.jpg?X-Amz-Signature=abc&x=1: HTTP 400")
    found = Failures(Listing()).ask("https://cdn/a.jpg", raising(error))
    assert found == Failure("unreadable", "https://***@cdn/a.jpg?X-Amz-Signature=***&x=1: HTTP 400")


@pytest.mark.parametrize(
    ("uri", "home"),
    [
        ("s3://bucket/a/b.jpg", "s3://bucket"),
        ("https://cdn.shop:8443/a?b=c", "https://cdn.shop:8443"),
        ("https://cdn.shop?a", "https://cdn.shop"),
        ("/photos/a.jpg", ""),
        ("file:///photos/a.jpg", ""),
        ("sha256:abc", ""),
        ("memory://m/a", "memory://m"),
    ],
)
def test_the_home_of_a_photo(uri: str, home: str) -> None:
    assert home_of(uri) == home
    assert homes_of(pa.chunked_array([[uri]])).to_pylist() == [home]


def limits(photos: dict[str, int], share: float) -> FailureLimits:
    uris = [f"{home}/{n}" for home, count in photos.items() for n in range(count)]
    return FailureLimits(pa.chunked_array([uris]), share)


def failed(home: str, reason: str, count: int) -> list[Failed]:
    return [Failed(home, f"{home}/{n}", reason, f"{home}/{n}: HTTP 1{n:02}") for n in range(count)]


BUCKET, OTHER, HOST = "s3://b", "s3://o", "https://h"


@pytest.mark.parametrize(
    ("photos", "share", "reason", "home", "count", "expected"),
    [
        # One photo, nine of sixty, one in a hundred: rows. Ten of sixty, more than one in a hundred: the store's fault.
        (60, 0.01, "unreachable", BUCKET, 1, None),
        (60, 0.01, "unreachable", BUCKET, 9, None),
        (60, 0.01, "unreachable", BUCKET, 10, Unavailable),
        (5_000, 0.01, "unreachable", HOST, 50, None),
        (5_000, 0.01, "unreachable", HOST, 51, Unavailable),
        (60, 0.5, "unreachable", BUCKET, 30, None),
        (60, 0.5, "unreachable", BUCKET, 31, Unavailable),
        (60, 0.0, "unreachable", BUCKET, 1, Unavailable),
        (60, 0.01, "bad_uri", BUCKET, 9, None),
        (60, 0.01, "bad_uri", BUCKET, 10, InputError),
        (60, 0.01, "forbidden", BUCKET, 9, None),
        (60, 0.01, "forbidden", BUCKET, 10, ClientRefused),
        (60, 0.01, "missing", BUCKET, 60, None),
        (60, 0.01, "changed", BUCKET, 60, None),
    ],
)
def test_how_many_may_fail(
    photos: int, share: float, reason: str, home: str, count: int, expected: type[CodebooksError] | None
) -> None:
    checked = limits({home: photos}, share)
    if expected is None:
        checked.check(failed(home, reason, count))
        return
    with pytest.raises(expected, match=r"HTTP 100; .*HTTP 101|HTTP 100") as caught:
        checked.check(failed(home, reason, count))
    assert type(caught.value) is expected


def test_refusals_are_a_share_of_the_whole_catalogue() -> None:
    """One of three suppliers may refuse us for ever, as long as its photos are no more than may fail."""
    checked = limits({BUCKET: 5_000, OTHER: 40, HOST: 20}, 0.01)
    checked.check(failed(HOST, "forbidden", 20))
    checked.check([*failed(OTHER, "forbidden", 40)], asked={OTHER: 40, BUCKET: 3})
    with pytest.raises(
        ClientRefused, match=r"access to 51 of 5,060 photos was refused: 40 of s3://o .* 11 of https://h"
    ):
        checked.check([*failed(HOST, "forbidden", 11), *failed(OTHER, "forbidden", 40)])
    with pytest.raises(ClientRefused, match=r"https://h.*let the host know this machine"):
        checked.check(failed(HOST, "forbidden", 51))


def test_a_supplier_that_closed_its_bucket_is_told_with_bucket_count_share_and_remedies() -> None:
    photos = {BUCKET: 600, OTHER: 120, HOST: 280}
    refused = failed(OTHER, "forbidden", 120)
    with pytest.raises(ClientRefused) as caught:
        limits(photos, 0.01).check(refused)
    said = str(caught.value)
    assert "access to 120 of 1,000 photos was refused: 120 of s3://o (120 of the catalogue's photos are there)" in said
    assert "12.00% of all photos, more than catalogue.max_unreachable allows (0.01 of them, and 9 always)" in said
    assert "s3://o/0: HTTP 100" in said
    assert "give the credentials that right" in said
    assert "take its rows out of the catalogue, or set catalogue.max_unreachable to 0.12 or more" in said
    assert caught.value.exit_code == 3
    limits(photos, 0.12).check(refused)  # the remedy that was named, at its very edge
    limits(photos, 0.12).check(refused, asked={OTHER: 120})
    with pytest.raises(ClientRefused):
        limits(photos, 0.1199).check(refused)


@pytest.mark.parametrize("photos", [60, 97, 1_000, 12_345])
def test_the_share_that_is_named_is_always_enough(photos: int) -> None:
    for count in (10, photos // 3, photos * 29 // 100):
        told = limits({BUCKET: photos - count, OTHER: count}, 0.0)
        with pytest.raises(ClientRefused) as caught:
            told.check(failed(OTHER, "forbidden", count))
        named = re.search(r"max_unreachable to ([0-9.]+) or more", str(caught.value))
        assert named
        limits({BUCKET: photos - count, OTHER: count}, float(named[1])).check(failed(OTHER, "forbidden", count))


def test_a_bucket_that_refused_all_that_was_asked_of_it_is_closed() -> None:
    checked = limits({BUCKET: 100_000}, 0.01)
    checked.check(failed(BUCKET, "forbidden", 500), asked={BUCKET: 501})
    with pytest.raises(ClientRefused, match=r"all that were asked for there.*max_unreachable to 1 or more"):
        checked.check(failed(BUCKET, "forbidden", 500), asked={BUCKET: 500})
    checked.check(failed(BUCKET, "forbidden", 9), asked={BUCKET: 9})
    # What else lives in the bucket stands behind the same refusal: also where other buckets answer.
    two = limits({BUCKET: 60_000, OTHER: 40_000}, 0.01)
    with pytest.raises(ClientRefused, match=r"500 of s3://o \(40,000 .*max_unreachable to 0.4 or more"):
        two.check(failed(OTHER, "forbidden", 500), asked={BUCKET: 700, OTHER: 500})


@pytest.mark.slow
def test_every_reason_that_the_code_gives_is_in_the_vocabulary() -> None:
    said = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name in ("PhotoRefused", "Failure", "Unanswered"):
                words = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                said |= {word for word in words if isinstance(word, str) and word not in ("fetch", "decode", "plan")}
    assert said <= set(REASONS)
    assert {"unreachable", "broken", "forbidden"} <= said
    assert set(DECODED) <= KEPT


def test_the_readme_says_what_the_next_night_makes_of_each_reason() -> None:
    lines = (ROOT / "pipeline" / "catalogue" / "README.md").read_text().splitlines()
    rows = [line.split("|") for line in lines[lines.index("| reason | what it means | the next night |") :]]
    told = {row[1].strip(" `"): row[3].strip() for row in reversed(rows) if len(row) == 5}
    nights = {True: "kept while the token is the same", False: "asked for again"}
    expected = {word: nights[reason.kept] for word, reason in REASONS.items()}
    assert {word: told.get(word) for word in REASONS} == expected
