"""Sizing: shards are dealt as told, costs are those that were measured, and recorded runs are foretold."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import sizing
from cluster.sizing import DRIVER, WORK, Place, Shop, makespan, shard_rows, simulate, smallest
from pipeline.encoding import EncodeConfig, driver
from pipeline.encoding.shards import PART_BYTES

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks/results"


def result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def measured(stage: str, sizes: list[str]) -> tuple[list[float], list[float]]:
    """Return photos fetched and processor seconds of a stage on the nights of these sizes."""
    nights = [result("sizing.json")["nights"][size][which] for size in sizes for which in ("first", "second")]
    found = [(night["fetched"], night["seconds"][stage]) for night in nights if stage in night["seconds"]]
    return [float(x) for x, _ in found], [y for _, y in found]


@pytest.mark.parametrize(
    ("jobs", "ready", "ends"),
    [([], [5.0], 0.0), ([1.0, 1.0, 1.0], [0.0, 0.0], 2.0), ([4.0, 1.0, 1.0, 1.0], [0.0, 0.0], 4.0),
     ([1.0, 1.0], [0.0, 10.0], 2.0 + 8.0), ([3.0], [2.0], 5.0)],
)  # fmt: skip
def test_a_shard_goes_to_the_worker_that_is_free_first(jobs: list[float], ready: list[float], ends: float) -> None:
    assert makespan(jobs, ready) == ends


def test_dealing_is_never_better_than_the_best_and_never_twice_as_long() -> None:
    """Against every way to deal out a few jobs; Graham's bound for the way that Ray Data deals them."""
    random = np.random.default_rng(0)
    for _ in range(20):
        jobs = [float(value) for value in random.uniform(1, 9, 6)]
        best = min(
            max(sum(job for job, worker in zip(jobs, dealt, strict=True) if worker == one) for one in range(3))
            for dealt in itertools.product(range(3), repeat=len(jobs))
        )
        assert best - 1e-9 <= makespan(jobs, [0.0] * 3) <= (2 - 1 / 3) * best


@pytest.mark.parametrize(("catalogue", "side"), [("fashion", 28), ("clothing", 64)])
def test_shards_are_as_many_as_real_nights_had(catalogue: str, side: int) -> None:
    counts = result("refresh.json")["results"][catalogue]["plan"]["counts"]
    assert math.ceil(counts["to_fetch"] / shard_rows(counts["to_fetch"], side)) == counts["shards"]


def test_a_large_shard_is_held_by_its_bytes() -> None:
    assert shard_rows(10_000_000, 64) == PART_BYTES // (64 * 64 * 3)


@pytest.mark.parametrize("stage", WORK)
def test_what_actors_cost_is_what_was_measured(stage: str) -> None:
    sizes = sorted(result("sizing.json")["nights"], key=int)
    assert pytest.approx(float(np.polyfit(*measured(stage, sizes), 1)[0]), rel=0.02) == WORK[stage]


def test_what_the_driver_costs_is_what_was_measured() -> None:
    small, large = result("sizing.json")["driver"]
    more = large["photos"] - small["photos"]
    for stage, seconds in DRIVER.items():
        slope = (large["steps"][stage]["s"] - small["steps"][stage]["s"]) / more
        assert seconds == pytest.approx(max(0.0, slope), rel=0.05, abs=2e-8), stage
    memory = result("sizing.json")["driver_memory"]
    a_photo = (memory[1]["peak_mib"] - memory[0]["peak_mib"]) * 2**20 / (memory[1]["photos"] - memory[0]["photos"])
    assert pytest.approx(a_photo, rel=0.02) == sizing.DRIVER_BYTES
    assert (
        pytest.approx(memory[0]["peak_mib"] * 2**20 - memory[0]["photos"] * a_photo, rel=0.02)
        == sizing.DRIVER_BASE_BYTES
    )


def test_bytes_and_rates_are_those_that_were_measured() -> None:
    nights = result("sizing.json")["nights"]
    small, large = sorted(map(int, nights))[-2:]
    grown = {name: (nights[str(large)]["store_bytes"][name] - nights[str(small)]["store_bytes"][name]) / (large - small)
             for name in ("pixels", "latents", "releases")}  # fmt: skip
    found = (sizing.PIXELS_BYTES, sizing.LATENTS_BYTES, sizing.RELEASE_BYTES)
    assert found == pytest.approx((grown["pixels"], grown["latents"], grown["releases"]), rel=0.02)
    for side, cost in result("sizing.json")["decoding"].items():
        assert sizing.DECODE_MS[int(side)] == pytest.approx(cost["ms"], rel=0.01)
    listing = result("sizing.json")["listing"]
    assert pytest.approx(listing["names"] / listing["seconds"], rel=0.01) == sizing.NAMES_PER_S
    train = result("train.json")
    assert pytest.approx(train["ours_images_per_s"], rel=0.01) == sizing.TRAIN_PHOTOS_PER_S
    two = train["workers_2"]["ours_images_per_s"] / train["ours_images_per_s"]
    assert pytest.approx(two - 1, abs=0.17) == sizing.TRAIN_SCALING


@pytest.mark.parametrize("stage", WORK)
def test_the_smaller_nights_foretell_the_largest(stage: str) -> None:
    sizes = sorted(result("sizing.json")["nights"], key=int)
    largest = result("sizing.json")["nights"][sizes[-1]]["first"]
    told = float(np.polyval(np.polyfit(*measured(stage, sizes[:-1]), 1), largest["fetched"]))
    assert told == pytest.approx(largest["seconds"][stage], rel=0.25)


@pytest.mark.parametrize(("catalogue", "side", "pixels"), [("clothing", 512, 64), ("fashion", 28, 28)])
def test_recorded_nights_of_other_catalogues_are_foretold(catalogue: str, side: int, pixels: int) -> None:
    """Pixels and encode of `results/refresh.json` with two actors on Ray, start-up and all: within a factor of two."""
    night = result("refresh.json")["results"][catalogue]
    recorded = night["seconds"]["pixels"] + night["seconds"]["encode"]
    shop = Shop(night["plan"]["counts"]["photos"], side=side, pixels=pixels, first=True, listed=False)
    told = next(
        stage for stage in simulate(shop, Place(cores=2, warm=True), 1).stages if stage.name.startswith("fetch")
    )
    assert recorded / 2 < told.seconds < recorded * 2


def encode_stage(photos: int, nodes: int, place: Place, rows: int) -> sizing.Stage:
    shop = Shop(photos, churn=1.0, side=32, kilobytes=3.0, pixels=32, shard_rows=rows)
    return next(stage for stage in simulate(shop, place, nodes).stages if stage.name.startswith("fetch"))


@pytest.mark.parametrize(("nodes", "rounds"), [(1, 16 * 3), (2, 8 * 3), (4, 4 * 3), (5, 4 * 3), (16, 3), (40, 3)])
def test_photos_that_answer_late_are_waited_for_sixteen_at_once(nodes: int, rounds: int) -> None:
    """32 shards of 48 photos, two at once an actor: three rounds of 16 requests a shard, and the last shards decide."""
    place = Place(cores=1, warm=True, get_ms=600.0, start_s=0.0)
    stage = encode_stage(32 * 48, nodes, place, 48)
    assert stage.seconds == pytest.approx(rounds * 0.6)
    assert encode_stage(32 * 48, nodes, Place(cores=1, warm=True, start_s=0.0), 48).seconds < stage.seconds / 5


def test_nights_on_one_two_and_four_nodes_are_foretold() -> None:
    """`results/sized_nodes.json`: real Ray nodes, photos that answer late; only the start-up is taken from the runs."""
    found = result("sized_nodes.json")
    assert [night["nodes"] for night in found["nodes"]] == [1, 2, 4]
    for night in found["nodes"]:
        place = Place(cores=1, warm=True, get_ms=found["get_ms"], start_s=night["start_s"])
        told = encode_stage(found["photos"], night["nodes"], place, found["shard_rows"]).seconds
        assert told == pytest.approx(night["measured_s"], rel=0.25)


def test_requests_and_shards_at_once_are_those_of_the_actors() -> None:
    assert EncodeConfig().fetch_threads == sizing.REQUESTS
    assert driver._AT_ONCE == sizing.AT_ONCE


def test_whoever_waits_for_answers_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizing.main(["--photos", "1e7", "--first", "--column", "--prefixes", "100", "--get-ms", "200"]) == 0
    line = capsys.readouterr().out.splitlines()[2]
    assert "the photos' answers" in line
    assert "encode.fetch_threads" in line


def test_the_fewest_nodes_are_enough_and_one_less_is_not() -> None:
    shop, place = Shop(30_000_000, first=True, listed=False), Place(prefixes=100)
    night = smallest(shop, place, 1.0)
    assert night.nodes > 1
    assert night.hours <= 1.0 < simulate(shop, place, night.nodes - 1).hours


def test_what_no_number_of_nodes_mends_is_said() -> None:
    night = smallest(Shop(1_000_000_000), Place(), 6.0)
    assert night.hours > 6.0
    assert night.nodes < 10_000
    assert night.bottleneck.bound == "the process that lists"
    assert math.isclose(night.bottleneck.seconds, 1e9 / sizing.NAMES_PER_S)


def test_the_table_names_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizing.main(["--photos", "1e6", "1e9", "--hours", "6"]) == 0
    head, _, small, large = capsys.readouterr().out.splitlines()
    assert head.startswith("| photos | nodes | hours |")
    assert small.startswith("| 1,000,000 | 1 | ")
    assert "(not in 6)" in large
    assert "(has 64)" in large
    assert "more memory" in large
    assert sizing.main(["--photos", "1e7"]) == 0
    assert "catalogue.version" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"), [("night", []), ("first", ["--first", "--column", "--prefixes", "100", "--hours", "12"])]
)
def test_the_readme_shows_what_the_command_prints(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sizing.main(words) == 0
    text = (Path(__file__).resolve().parents[2] / "cluster/README.md").read_text()
    shown = text.partition(f"<!-- sizing: {name} -->\n")[2].partition("<!-- end -->")[0]
    assert shown.strip() == capsys.readouterr().out.strip()
