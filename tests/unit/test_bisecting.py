"""Halving a shard whose process dies: who is convicted, at what cost, and who never is."""

from __future__ import annotations

import math

import pytest

from pipeline.encoding.bisecting import Death, find_killers
from pipeline.errors import CodebooksError

CRASH = Death("crashed", "it was ended by SIGSEGV")
MEMORY = Death("out_of_memory", "it was killed by SIGKILL")


class Court:
    """Trials of rows of which some always kill; counts deaths and whose."""

    def __init__(self, guilty: dict[int, Death]) -> None:
        self.guilty = guilty
        self.deaths = 0
        self.trials: list[tuple[int, ...]] = []

    def __call__(self, rows: tuple[int, ...]) -> Death | None:
        self.trials.append(rows)
        death = next((self.guilty[row] for row in rows if row in self.guilty), None)
        self.deaths += death is not None
        return death


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 500, 1000])
@pytest.mark.parametrize("where", [0.0, 0.37, 0.999])
def test_one_killer_is_found_at_the_cost_of_a_logarithm(count: int, where: float) -> None:
    row = int(where * count)
    court = Court({row: CRASH})
    assert find_killers(tuple(range(count)), court, most=20) == {row: CRASH}
    assert court.deaths <= math.ceil(math.log2(count)) + 2
    assert court.trials[0] == ()  # the innocent one: nothing at all
    assert sum(len(rows) for rows in court.trials) <= 2 * count + 2  # photos that are worked on twice more, no more


@pytest.mark.parametrize("rows", [(3, 4), (0, 499), (7, 100, 101, 250, 499), tuple(range(40, 52))])
def test_several_killers_of_one_shard_are_each_found_with_their_cause(rows: tuple[int, ...]) -> None:
    guilty = {row: (CRASH, MEMORY)[n % 2] for n, row in enumerate(rows)}
    court = Court(guilty)
    assert find_killers(tuple(range(500)), court, most=20) == guilty
    assert court.deaths <= len(rows) * (math.ceil(math.log2(500)) + 2)


def test_rows_need_not_be_a_range() -> None:
    court = Court({17: CRASH, 4: CRASH})
    assert find_killers((17, 3, 99, 8), court, most=20) == {17: CRASH}
    assert all(4 not in rows for rows in court.trials)


def test_a_death_that_does_not_repeat_convicts_nobody() -> None:
    """A machine that went away under an innocent photo, once, at each stage of the search."""
    for fatal in range(1, 9):
        deaths = iter(n == fatal for n in range(1000))
        assert find_killers(tuple(range(8)), lambda _rows, d=deaths: CRASH if next(d) else None, most=20) == {}


def test_photos_that_only_die_together_are_innocent() -> None:
    assert find_killers(tuple(range(16)), lambda rows: MEMORY if len(rows) > 4 else None, most=20) == {}


def test_a_process_that_dies_of_nothing_accuses_no_photo() -> None:
    trials: list[tuple[int, ...]] = []

    def always(rows: tuple[int, ...]) -> Death:
        trials.append(rows)
        return MEMORY

    with pytest.raises(CodebooksError, match=r"dies without any photo .*SIGKILL.*encode\.batch_size"):
        find_killers(tuple(range(100)), always, most=20)
    assert trials == [()]


def test_more_killers_than_can_be_are_the_fault_of_something_else() -> None:
    court = Court(dict.fromkeys(range(100), CRASH))
    with pytest.raises(CodebooksError, match="more than 5 photos kill"):
        find_killers(tuple(range(100)), court, most=5)
    assert court.deaths < 5 * 9
