"""How many nodes and hours a catalogue takes, and what holds it up: `python -m cluster.sizing --photos 10e6 1e9`.

A small simulation. What a photo costs is measured (`tests/benchmarks/bench_sizing.py`, processor seconds of a thread);
shards are dealt to actors as Ray Data deals them, and each stage is as slow as the slowest of what it needs: cores, the
nodes' network, the store's requests, or the one driver. What is judged instead of measured says so at its name.
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

# Processor seconds of one thread a photo that is fetched, by `bench_sizing.py`; a test fits its results again. The
# model is a VAE of 64 pixels and 32 numbers, the photos JPEGs of 96 pixels in the table itself.
WORK = {"pixels": 4.107e-4, "encode": 3.346e-4}
# Seconds of the driver a photo of the catalogue, by `bench_scale.py` (night 2): they begin one after the other, and no
# node shortens them. `encode` is what the driver does of it: carrying over what did not change.
DRIVER = {"plan": 6.67e-06, "encode": 7.99e-07, "build": 3.10e-05}
DRIVER_BYTES, DRIVER_BASE_BYTES = 864, 1.15e9  # of the driver's memory, a photo and without any
PIXELS_BYTES, LATENTS_BYTES, RELEASE_BYTES = 1595, 66, 137  # on the store a photo, the last of each release
DECODE_MS = {256: 0.486, 512: 0.824, 1024: 1.713}  # of a JPEG by its side
# `results/train.json`: photos a second of one thread, and what a second worker adds on one machine.
TRAIN_PHOTOS_PER_S, TRAIN_SCALING = 1352.0, 0.83

REQUESTS = 16  # for a shard at once, `encode.fetch_threads`
AT_ONCE = 2  # shards of an actor
CORES, ANSWERS = "cores", "the photos' answers"  # what an actor may wait for
ACTOR_SHARE = 0.6  # of a plain process's rate beside others: 0.50 to 0.75 were measured, on two cores
START_S = 12.0  # Ray and the actors, measured on two cores
# A page of 1,000 names takes so long to parse (botocore), and one process parses one at a time, however many ranges it
# lists at once.
NAMES_PER_S = 1000 / 0.0859
BOOT_S = 180.0  # a node from nothing: judged
NETWORK_SHARE = 0.6  # of a node's line that photos get: judged
GETS_PER_S = 5_000  # of one prefix of an object store: as S3 promises (5,500), rounded down
RUNS_KEPT = 30  # releases on the store: judged

# As `pipeline.encoding.shards` cuts: 1,000 photos not, more into 64, of 500 rows or more; of 128 MiB of pixels at most.
_UNCUT_ROWS, _SHARDS, _LEAST_ROWS, _PART_BYTES = 1_000, 64, 500, 128 * 2**20


@dataclass(frozen=True, slots=True)
class Shop:
    """A catalogue and its night. churn: share of photos that are new or changed; side: of a photo as it is fetched.

    first: the first night of all, on which everything is fetched and the model is trained, on `learned` photos at most
    for `epochs`. listed: tokens come from a listing of the photos' bucket, not from a column or embedded bytes.
    shard_rows: `encode.shard_rows`, where it is set.
    """

    photos: int
    churn: float = 0.01
    side: int = 512
    kilobytes: float = 60.0
    pixels: int = 64
    first: bool = False
    learned: int = 2_000_000
    epochs: int = 10
    listed: bool = True
    shard_rows: int | None = None

    @property
    def fetched(self) -> int:
        """How many photos the night fetches and encodes."""
        return self.photos if self.first else math.ceil(self.photos * self.churn)


@dataclass(frozen=True, slots=True)
class Place:
    """Where it runs. cores: of a node, one actor each; gbit: its network; warm: the nodes are up already.

    memory_gb: of the driver. get_ms: what photos come from takes to begin its answer to one request. start_s: of Ray
    and the actors on nodes that are up.
    """

    cores: int = 16
    memory_gb: float = 64.0
    gbit: float = 10.0
    prefixes: int = 1
    warm: bool = False
    get_ms: float = 0.0
    start_s: float = START_S


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a night. bound: what it waits for."""

    name: str
    seconds: float
    bound: str


@dataclass(frozen=True, slots=True)
class Night:
    """A night as simulated. store_gb: pixels, latents and RUNS_KEPT releases; driver_gb: its memory."""

    nodes: int
    stages: tuple[Stage, ...]
    store_gb: float
    driver_gb: float

    @property
    def hours(self) -> float:
        """How long it takes."""
        return sum(stage.seconds for stage in self.stages) / 3600

    @property
    def bottleneck(self) -> Stage:
        """The longest stage."""
        return max(self.stages, key=lambda stage: stage.seconds)


def simulate(shop: Shop, place: Place, nodes: int) -> Night:
    """Return the night of a shop on so many nodes beside the driver's."""
    stages = [_listing(shop), *(_driven(shop, name) for name in DRIVER)]
    if shop.first:
        stages.append(_training(shop, place, nodes))
    stages.append(_fetching(shop, place, nodes))
    photos = shop.photos
    return Night(
        nodes,
        tuple(stage for stage in stages if stage.seconds > 0),
        store_gb=photos * (PIXELS_BYTES + LATENTS_BYTES + RUNS_KEPT * RELEASE_BYTES) / 1e9,
        driver_gb=(DRIVER_BASE_BYTES + photos * DRIVER_BYTES) / 1e9,
    )


def smallest(shop: Shop, place: Place, hours: float, most: int = 10_000) -> Night:
    """Return the night on the fewest nodes that end it in time; on those that no more of shorten it where none do."""
    low, high = 1, 1
    while simulate(shop, place, high).hours > hours and high < most:
        high *= 2
    if simulate(shop, place, high).hours > hours:
        best = simulate(shop, place, most).hours
        return next(
            night
            for nodes in (2**power for power in range(15))
            if (night := simulate(shop, place, nodes)).hours < 1.05 * best
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if simulate(shop, place, middle).hours <= hours else (middle + 1, high)
    return simulate(shop, place, low)


def makespan(jobs: Sequence[float], ready: Sequence[float]) -> float:
    """Return when the last of some jobs ends: each goes to the worker that is free first. ready: when each begins."""
    free = list(ready)
    heapq.heapify(free)
    for seconds in jobs:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free) if jobs else 0.0


def shard_rows(fetched: int, pixels: int) -> int:
    """Return how many photos a shard has."""
    least = fetched if fetched <= _UNCUT_ROWS else max(_LEAST_ROWS, math.ceil(fetched / _SHARDS))
    return max(1, min(least, _PART_BYTES // (pixels * pixels * 3)))


def shard_seconds(shop: Shop, place: Place, photos: int) -> tuple[float, str]:
    """Return how long an actor has a shard, and what it waits for: it fetches while it decodes.

    An actor has AT_ONCE shards: their answers are waited for together, their processor time adds up.
    """
    cores, answers = photos * photo_seconds(shop), math.ceil(photos / REQUESTS) * place.get_ms / 1000
    return (answers, ANSWERS) if answers > cores * AT_ONCE else (cores, CORES)


def photo_seconds(shop: Shop) -> float:
    """Return the processor seconds that fetching, decoding and encoding one photo takes an actor."""
    scale = (shop.pixels / 64) ** 2  # pixels are written and read, and a convolution's work grows alike
    small, large = min(DECODE_MS), max(DECODE_MS)
    slope = (DECODE_MS[large] - DECODE_MS[small]) / (large**2 - small**2)
    decode = max(0.0, slope * (shop.side**2 - 96**2)) / 1000
    return (sum(WORK.values()) * scale + decode) / ACTOR_SHARE


def _fetching(shop: Shop, place: Place, nodes: int) -> Stage:
    """Return the stages of the actors, as one: the slowest of their cores, their network, and the store."""
    fetched = shop.fetched
    rows = shop.shard_rows or shard_rows(fetched, shop.pixels)
    shards = [rows] * (fetched // rows) + ([fetched % rows] if fetched % rows else [])
    start = place.start_s + (0.0 if place.warm else BOOT_S)
    taken = {photos: shard_seconds(shop, place, photos) for photos in {*shards, rows}}
    waits_for = taken[rows][1]
    at_once = AT_ONCE if waits_for == ANSWERS else 1
    ends = {
        waits_for: makespan([taken[photos][0] for photos in shards], [start] * (nodes * place.cores * at_once)),
        "network": start + fetched * shop.kilobytes * 8e-6 / (nodes * place.gbit * NETWORK_SHARE),
        "the store's requests": start + fetched / (GETS_PER_S * place.prefixes),
    }
    bound = max(ends, key=lambda name: ends[name])
    return Stage("fetch, decode, encode", ends[bound], "start-up" if ends[bound] < 2 * start else bound)


def _training(shop: Shop, place: Place, nodes: int) -> Stage:
    """Return the training on the cores; a GPU's rate is to be measured where there is one."""
    workers = nodes * place.cores
    rate = TRAIN_PHOTOS_PER_S * (1 + (workers - 1) * TRAIN_SCALING)
    return Stage("train", min(shop.learned, shop.photos) * shop.epochs / rate, CORES)


def _listing(shop: Shop) -> Stage:
    return Stage("list names", shop.photos / NAMES_PER_S if shop.listed else 0.0, "the process that lists")


def _driven(shop: Shop, name: str) -> Stage:
    return Stage(f"driver: {name}", shop.photos * DRIVER[name], "the driver")


def remedy(night: Night, place: Place) -> str:
    """Return what to change: first what does not fit, else what takes longest."""
    if night.driver_gb > place.memory_gb:
        return "a driver with more memory, or several catalogues"
    return {
        "the process that lists": "tokens from a column (catalogue.version) or an inventory (catalogue.inventory)",
        "the driver": "a faster core for the driver; nodes do not help",
        CORES: "more nodes, or GPUs for the encoder",
        ANSWERS: "more requests at once (encode.fetch_threads), or more nodes",
        "network": "nodes with a wider line, or smaller photos at the source",
        "the store's requests": "photos below several prefixes",
        "start-up": "nothing; a warm node would save the most",
    }[night.bottleneck.bound]


def main(words: Sequence[str] | None = None) -> int:
    """Print a table: a line a catalogue."""
    parser = argparse.ArgumentParser(prog="python -m cluster.sizing", description=(__doc__ or "").splitlines()[0])
    shop, place = Shop(1), Place()
    parser.add_argument("--photos", type=float, nargs="+", default=[10e6, 100e6, 1e9])
    parser.add_argument("--churn", type=float, default=shop.churn, help="share of photos that a night fetches")
    parser.add_argument("--side", type=int, default=shop.side, help="pixels of a photo's side as it is fetched")
    parser.add_argument("--kilobytes", type=float, default=shop.kilobytes, help="of a photo as it is fetched")
    parser.add_argument("--pixels", type=int, default=shop.pixels, help="images.size")
    parser.add_argument("--first", action="store_true", help="the first night: everything fetched, a model trained")
    parser.add_argument("--column", action="store_true", help="tokens from a column, nothing is listed")
    parser.add_argument("--hours", type=float, default=6.0, help="that the night may take")
    parser.add_argument("--nodes", type=int, help="instead of the fewest that are in time")
    parser.add_argument("--cores", type=int, default=place.cores, help="of a node")
    parser.add_argument("--memory", type=float, default=place.memory_gb, help="of the driver's machine, GB")
    parser.add_argument("--prefixes", type=int, default=place.prefixes, help="of the store that the photos lie below")
    parser.add_argument("--get-ms", type=float, default=place.get_ms, help="until a request for a photo is answered")
    parser.add_argument("--gbit", type=float, default=place.gbit, help="of a node's network")
    given = parser.parse_args(words)
    place = replace(place, cores=given.cores, memory_gb=given.memory, gbit=given.gbit, prefixes=given.prefixes,
                    get_ms=given.get_ms)  # fmt: skip
    shop = replace(shop, churn=given.churn, side=given.side, kilobytes=given.kilobytes, pixels=given.pixels,
                   first=given.first, listed=not given.column)  # fmt: skip
    lines = ["| photos | nodes | hours | driver, GB | store, GB | takes longest | waits for | what to change |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for photos in given.photos:
        asked = replace(shop, photos=int(photos))
        night = simulate(asked, place, given.nodes) if given.nodes else smallest(asked, place, given.hours)
        longest = night.bottleneck
        late = "" if night.hours <= given.hours else f" (not in {given.hours:g})"
        full = "" if night.driver_gb <= place.memory_gb else f" (has {place.memory_gb:g})"
        lines.append(
            f"| {asked.photos:,} | {night.nodes:,} | {night.hours:.1f}{late} | {night.driver_gb:,.0f}{full} | "
            f"{night.store_gb:,.0f} | {longest.name}, {longest.seconds / 3600:.1f} h | {longest.bound} | "
            f"{remedy(night, place)} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
