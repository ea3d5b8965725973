"""What a plan says a night will take of memory: sums by hand, and a driver that is too small is refused at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.index import IndexConfig
from pipeline.planning import memory, memory_lines
from pipeline.planning.memory import Sizes, check_driver, memory_needs
from pipeline.storage import room
from pipeline.training import TrainConfig

FLAT = IndexConfig(kind="flat", segment_rows=10_000_000)  # one file
CONFIG: Any = SimpleNamespace(index=FLAT, train=TrainConfig(batch_size=10))
SIZES = Sizes(photos=10_000_000, row_bytes=2_000_000_000, latent_dim=32, pixel_bytes=12_288, trains=True)
GIB = 2**30


def test_needs_are_the_sums_that_their_lines_say() -> None:
    needs = {need.role: need.bytes for need in memory_needs(CONFIG, SIZES)}
    rows = 2_000_000_000 + 10_000_000 * memory._PLACES
    vectors = 10_000_000 * 32 * 4
    assert needs["driver while it plans"] == memory._BASE + memory._SLICES + memory._PLAN * rows
    assert needs["driver while it collects"] == memory._BASE + memory._COLLECT * rows
    index = needs["driver as index builder"] - memory._BASE - memory._SLICES - memory._BUILD * rows - 2 * vectors
    assert index / (3 * vectors) == pytest.approx(1.0, rel=0.01), "three copies of a flat index"
    assert needs["driver"] == max(size for role, size in needs.items() if role.startswith("driver "))
    assert needs["each actor"] == memory._BASE + 3 * 128 * 2**20
    assert needs["each trainer"] - needs["each actor"] == 64 * 10 * 12_288
    assert "each trainer" not in {need.role for need in memory_needs(CONFIG, replace(SIZES, trains=False))}
    segments: Any = SimpleNamespace(index=IndexConfig(kind="flat"), train=CONFIG.train)
    fewer = {need.role: need.bytes for need in memory_needs(segments, SIZES)}["driver as index builder"]
    saved = needs["driver as index builder"] - fewer
    assert saved == pytest.approx(3 * 0.8 * vectors - 10_000_000 * memory._PLACED, rel=0.01), "one of five segments"
    graph: Any = SimpleNamespace(index=FLAT.model_copy(update={"kind": "hnsw"}), train=CONFIG.train)
    assert memory_needs(graph, SIZES)[0].bytes > needs["driver"]
    lines = list(memory_lines(memory_needs(CONFIG, SIZES)))
    assert lines[1].startswith(f"  driver: {needs['driver'] / GIB:.1f} GiB (10,000,000 photos of 340 bytes")


@pytest.mark.parametrize(
    ("photos", "role", "peak_mib"),
    [
        (300_000, "driver as index builder", 1_256), (1_000_000, "driver as index builder", 1_923),
        (3_000_000, "driver as index builder", 3_548), (10_000_000, "driver as index builder", 9_335),
        (1_000_000, "driver while it collects", 1_401), (3_000_000, "driver while it collects", 2_371),
        (10_000_000, "driver while it collects", 5_809), (1_000_000, "driver while it plans", 1_843),
        (3_000_000, "driver while it plans", 3_485), (10_000_000, "driver while it plans", 9_128),
    ],
)  # fmt: skip
def test_needs_are_about_what_was_measured_and_not_below(photos: int, role: str, peak_mib: int) -> None:
    """Peaks that bench_scale.py printed (scale.json), rows of 176 bytes, latents of 8 numbers."""
    sizes = Sizes(photos=photos, row_bytes=176 * photos, latent_dim=8, pixel_bytes=768, trains=False)
    need = {need.role: need.bytes for need in memory_needs(CONFIG, sizes)}[role] / 2**20
    assert peak_mib <= need <= 1.3 * peak_mib


def test_a_driver_that_cannot_hold_it_is_refused_with_the_figure() -> None:
    needs = memory_needs(CONFIG, SIZES)
    check_driver(needs, limit=needs[0].bytes)
    figure = f"about {needs[0].bytes / GIB:.1f} GiB.*may hold {(needs[0].bytes - 1) / GIB:.1f} GiB"
    with pytest.raises(ConfigError, match=figure):
        check_driver(needs, limit=needs[0].bytes - 1)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_is_that_of_the_narrowest_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    for folder, most in ((root, "max" if version == 2 else "9223372036854771712"), (root / "pods", str(3 * GIB)),
                         (root / "pods/one", str(5 * GIB))):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(most)
        (folder / used).write_text(str(GIB))
    groups = tmp_path / "cgroup"
    groups.write_text("5:memory:/pods/one\n" if version == 1 else "0::/pods/one\n")
    monkeypatch.setattr(room, "_CGROUPS", groups)
    monkeypatch.setattr(room, "_CGROUP_ROOT", tmp_path)
    assert room.memory_limit() == 3 * GIB
    assert room._memory_left() == 2 * GIB
    monkeypatch.setattr(room, "_CGROUPS", tmp_path / "nothing")
    assert room.memory_limit() > 3 * GIB, "what the machine has"
