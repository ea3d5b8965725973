"""What benchmarks share: their options, and the files of their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import options, record

FOLDER = Path(record.__file__).parent


def test_a_result_stands_beside_others_and_in_place_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "new" / "found.json"
    record.add(path, {"s": 1}, "clothing", "vae")
    record.add(path, {"s": 2}, "clothing", "cvae")
    record.add(path, {"s": 3}, "clothing", "vae")
    assert json.loads(path.read_text()) == {"results": {"clothing": {"vae": {"s": 3}, "cvae": {"s": 2}}}}
    assert [each.name for each in path.parent.iterdir()] == ["found.json"]


def test_a_run_takes_the_place_of_the_one_of_its_name_and_seed(tmp_path: Path) -> None:
    runs = record.read(tmp_path / "none.json")
    for seed, value in ((0, 1), (1, 2), (0, 3)):
        runs = record.renewed(runs, {"name": "vae", "seed": seed, "knn": value}, "name", "seed")
    assert [(run["seed"], run["knn"]) for run in runs] == [(1, 2), (0, 3)]
    assert record.renewed(runs, {"name": "vae", "seed": 5}, "name") == [{"name": "vae", "seed": 5}]


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    path.symlink_to("/dev/null")
    record.write(path, {"s": 1})
    assert path.is_symlink()
    assert record.kept(path) == {"results": {}}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    record.write(path, {"s": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.write(path, {"s": object()})
    assert json.loads(path.read_text()) == {"s": 1}


def test_options_take_their_types_from_their_defaults() -> None:
    parser = options.Options("told", json=options.NEEDED, slow_s=0.1, rows=(7, "of a part"), plot=Path, here=False)
    parser.hidden(one=int)
    asked = parser.parse_args(["--json", "x.json", "--slow-s", "2", "--here", "--one", "3"])
    found = {"json": Path("x.json"), "slow_s": 2.0, "rows": 7, "plot": None, "here": True, "one": 3}
    assert vars(asked) == found
    assert "of a part" in parser.format_help()
    assert "--one" not in parser.format_help()


def test_a_file_that_has_to_be_named_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options.Options("told", json=options.NEEDED).parse_args([])
    assert "the following arguments are required: --json" in capsys.readouterr().err


def test_names_that_are_not_there_are_refused_by_name() -> None:
    assert options.names_of(None, ("disk", "s3"), "places") == ["disk", "s3"]
    assert options.names_of("s3", ("disk", "s3"), "places") == ["s3"]
    with pytest.raises(SystemExit, match="no places tape; there are disk, s3"):
        options.names_of("s3,tape", ("disk", "s3"), "places")


def test_without_catalogues_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not options.absent(tmp_path)
    assert capsys.readouterr().out == ""
    assert options.absent(tmp_path / "data")
    assert f"no catalogues at {tmp_path / 'data'}: nothing measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "room"),
    [("argparse.ArgumentParser", "options"), ('["git"', "record"), ('"shared" / "data"', "record")],
)
def test_each_is_done_in_one_place(words: str, room: str) -> None:
    assert {path.stem for path in FOLDER.glob("*.py") if words in path.read_text()} == {room}
