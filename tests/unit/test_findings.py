"""What doctor finds, taken together: the worst failure decides; a worker that runs other versions is said so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.command import Arguments
from pipeline.errors import ConfigError, InputError, Unavailable
from pipeline.findings import Diagnosis, Finding, examined
from pipeline.storage.new_files import open_new, unused
from pipeline.workers import compared, whereabouts

OK, WARN = Finding("ok", "python", "3.11"), Finding("warn", "memory", "little", "give it more")


def failure(code: int) -> Finding:
    return Finding("fail", f"with {code}", "no", "mend it", code)


@pytest.mark.parametrize(
    ("codes", "worst"), [((), 0), ((6,), 6), ((6, 1, 2), 2), ((3, 6), 3), ((6, 4, 1), 1), ((5, 4, 6), 4)]
)
def test_what_no_second_try_mends_decides(codes: tuple[int, ...], worst: int) -> None:
    found = Diagnosis((OK, *(failure(code) for code in codes), WARN))
    assert found.exit_code == worst
    assert [finding.exit_code for finding in found.failures] == list(codes)
    assert found.details().get("exit_code") == (worst or None)
    lines = found.text().splitlines()
    assert lines[0] == "ok   python: 3.11"
    assert lines[-1] == f"{len(codes) + 2} checks: {len(codes)} failed, 1 warnings"
    assert sum(line.startswith("       -> ") for line in lines) == len(codes) + 1


@pytest.mark.parametrize("error", [ConfigError("a"), InputError("b"), Unavailable("c")])
def test_an_error_of_a_check_is_its_last_finding(error: ConfigError | InputError | Unavailable) -> None:
    def check() -> Iterator[Finding]:
        yield OK
        raise error

    assert list(examined("store", check())) == [OK, Finding("fail", "store", str(error), "", error.exit_code)]

    def mistaken() -> Iterator[Finding]:
        raise KeyError("ours")
        yield OK

    with pytest.raises(KeyError):
        list(examined("store", mistaken()))


def test_a_worker_of_other_versions_is_warned_of() -> None:
    ours = whereabouts()
    level, text, mend = compared(replace(ours, host="elsewhere", root="/their/packages"))
    assert (level, mend) == ("ok", "")
    assert "a worker on elsewhere" in text
    level, text, mend = compared(replace(ours, torch="0.1", code="another"))
    assert level == "warn"
    assert f"torch: {ours.torch} here, 0.1 there; code: {ours.code} here, another there" in text
    assert "python:" not in text
    assert mend


def test_settings_among_a_commands_words() -> None:
    given = Arguments(overrides=("train.epochs=3",))
    arguments, words = given.settings_apart(["a", "store=here", "sku=7", "Sku=7", "publish.channel=x"])
    assert words == ["a", "Sku=7"], "keys of the catalogue begin as they like, settings in lower case"
    assert arguments.overrides == ("store=here", "sku=7", "publish.channel=x", "train.epochs=3")


def test_files_of_a_user_stay(tmp_path: Path) -> None:
    held, broken = tmp_path / "held", tmp_path / "broken"
    held.write_bytes(b"theirs")
    broken.symlink_to(tmp_path / "nowhere")
    for path in (held, broken):
        with pytest.raises(ConfigError, match="exists and is not overwritten; name another file with --x"):
            unused(str(path), "name another file with --x")
        with pytest.raises(ConfigError, match="exists and is not overwritten; name another file"):
            open_new(str(path))
    with pytest.raises(ConfigError, match="cannot be written"):
        open_new(str(tmp_path / "no" / "folder"))
    assert held.read_bytes() == b"theirs"
    with open_new(str(unused(str(tmp_path / "new")))) as file:
        file.write(b"ours")
    assert (tmp_path / "new").read_bytes() == b"ours"
