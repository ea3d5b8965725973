"""Keys: one text for one value, floats refused."""

from __future__ import annotations

import hashlib

import pytest

from pipeline.keys import canonical_json, digest_of, key_of, portable


def test_canonical_json_is_sorted_compact_utf8() -> None:
    assert canonical_json({"b": [1, None, True], "a": "ü"}) == '{"a":"ü","b":[1,null,true]}'.encode()


def test_key_is_the_sha256_of_that_text() -> None:
    assert key_of({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()
    assert digest_of(b"") == hashlib.sha256(b"").hexdigest()


def test_order_of_names_does_not_matter_and_order_of_lists_does() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of([1, 2]) != key_of([2, 1])


@pytest.mark.parametrize("value", [0.5, {"a": 0.5}, [1, [2.0]], (1.0,)])
def test_floats_are_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(TypeError, match="portable"):
        canonical_json(value)


def test_portable_keeps_floats_exact_and_apart_from_strings() -> None:
    assert portable({"lr": 1e-3, "n": 2, "list": (0.1, "x")}) == {
        "lr": "float:0.001",
        "n": 2,
        "list": ["float:0.1", "x"],
    }
    assert float(portable(0.1 + 0.2).removeprefix("float:")) == 0.1 + 0.2
