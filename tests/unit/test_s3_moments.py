"""Moments in answers of S3 servers, read as botocore reads them."""

from __future__ import annotations

import pytest

from pipeline.storage.s3_client import _timestamp


@pytest.mark.parametrize(
    "said",
    [
        "Mon, 30 Nov 2026 13:28:14 GMT", "Mon, 30 Nov 2026 13:28:14 -0000", "30 November 2026 13:28:14 GMT",
        "2026-11-30T13:28:14.000Z", "2026-11-30T13:28:14+01:00", "2026-11-30T13:28:14", "1700000000", 1700000000,
    ],
)  # fmt: skip
def test_whatever_way_a_server_writes_it(said: str | int) -> None:
    parse_timestamp = pytest.importorskip("botocore.utils").parse_timestamp
    assert _timestamp(said) == parse_timestamp(said)
    assert _timestamp(said).utcoffset() == parse_timestamp(said).utcoffset()


def test_what_is_no_moment_is_an_error() -> None:
    with pytest.raises(ValueError, match="tomorrow"):
        _timestamp("tomorrow")
