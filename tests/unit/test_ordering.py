"""Taking, ranking and cutting rows against plain Python, also where a column's texts pass 2 GiB."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest

from pipeline.ordering import SLICE_ROWS, aligned_slices, joined, ranks, take_column, take_rows

CHUNK, LETTERS, CHUNKS = 10_000, 4_000, 60  # 2.4 GB of text, in memory once a chunk


def long_texts() -> tuple[pa.ChunkedArray, list[str]]:
    words = [f"{number:02d}" + "x" * LETTERS for number in range(3)]
    chunk = pa.array([words[row % 3] for row in range(CHUNK)])
    return pa.chunked_array([chunk] * CHUNKS), words


def test_rows_are_taken_as_python_takes_them() -> None:
    generator = np.random.default_rng(0)
    values = [None if number % 7 == 0 else f"v{number}" for number in range(1000)]
    cuts = [0, 1, 1, 300, 999, 1000]  # one of the chunks is empty
    column = pa.chunked_array([pa.array(values[a:b], pa.string()) for a, b in itertools.pairwise(cuts)])
    table = pa.table({"text": column, "word": column.dictionary_encode(), "number": np.arange(1000)})
    asked = [np.sort(generator.integers(0, 1000, 2000)), generator.permutation(1000), np.array([999]), np.empty(0, int)]
    for places in asked:
        expected = {name: [table[name][place].as_py() for place in places.tolist()] for name in table.column_names}
        taken = take_rows(table, places)
        assert taken.to_pydict() == expected
        assert taken.schema == table.schema


def address(array: pa.Array) -> int:
    return int(array.buffers()[-1].address)


def test_unbroken_rows_are_shared_and_few_rows_do_not_hold_on_to_their_chunk() -> None:
    chunks = [pa.array([f"a photo's long address {number}" for number in range(a, a + 100)]) for a in (0, 100, 200)]
    column = pa.chunked_array(chunks)
    places = np.delete(np.arange(300), [150])  # the middle one is broken
    taken = take_column(column, places)
    assert taken.to_pylist() == [column[place].as_py() for place in places.tolist()]
    shared = [address(mine) == address(theirs) for mine, theirs in zip(taken.chunks, chunks, strict=True)]
    assert shared == [True, False, True]
    for few in (np.arange(7), np.arange(7)[::-1], np.zeros(100, np.int64)):  # they would keep all of it alive
        (chunk,) = take_column(column, few).chunks
        assert address(chunk) != address(chunks[0])
    (half,) = take_column(column, np.arange(20, 70)).chunks
    assert (half.to_pylist(), address(half)) == (chunks[0][20:70].to_pylist(), address(chunks[0]))


def test_a_null_position_gives_nulls_and_one_outside_is_an_error() -> None:
    column = pa.chunked_array([["a", "b"], ["c"]])
    assert take_column(column, pa.array([2, None, 0])).to_pylist() == ["c", None, "a"]
    assert take_column(column, pa.chunked_array([[None], [1]], pa.int32())).to_pylist() == [None, "b"]
    assert take_column(column.slice(0, 0), pa.array([None], pa.int64())).to_pylist() == [None]
    for outside in (3, -1):
        with pytest.raises(IndexError, match=f"{outside}"):
            take_column(column, np.array([0, outside]))


def test_more_than_2_gib_of_text_is_taken_and_ranked() -> None:
    column, words = long_texts()
    assert column.nbytes > 2**31
    codes, found = ranks(column)
    assert found == words
    np.testing.assert_array_equal(codes, np.tile(np.arange(CHUNK) % 3, CHUNKS))
    assert take_column(column, np.array([len(column) - 1, 1])).to_pylist() == [words[(CHUNK - 1) % 3], words[1]]
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        column.take(pa.array([len(column) - 1, 1]))


def test_ranks_of_a_dictionary_leave_out_words_that_no_row_has() -> None:
    column = pa.chunked_array([["b", "a", None], ["d", "c", "a"]]).dictionary_encode().filter(
        pa.array([True, False, True, False, True, True])
    )  # fmt: skip
    codes, words = ranks(column)
    assert words == ["a", "b", "c"]
    assert codes.tolist() == [1, -1, 2, 0]


def test_joined_texts_have_wide_offsets() -> None:
    assert joined(pa.chunked_array([["a"], ["b"]])) == pa.array(["a", "b"], pa.large_string())
    assert joined(pa.chunked_array([[1], [2]])) == pa.array([1, 2])
    assert joined(pa.chunked_array([], pa.string())).to_pylist() == []


def test_tables_are_cut_at_the_same_keys() -> None:
    rows = SLICE_ROWS + 5
    keys = np.sort(np.random.default_rng(1).integers(0, rows, rows))
    long = pa.table({"key": [f"{key:07d}" for key in keys.tolist()]})
    short = pa.table({"key": ["0000000", f"{keys[SLICE_ROWS]:07d}", "9"]})
    slices = list(aligned_slices("key", short, long))
    assert len(slices) == 2
    for number, table in enumerate((short, long)):
        assert pa.concat_tables([cut[number] for cut in slices]).equals(table)
    assert slices[0][1]["key"][-1].as_py() < slices[1][1]["key"][0].as_py()
    assert slices[0][0]["key"].to_pylist() == ["0000000"]
