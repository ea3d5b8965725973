"""Three nights of a real store, told to a textfile and a receiver: published, unchanged, refused by a gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow


def samples(folder: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """Return every series of a folder, by name and by the values of its labels but `channel` and `command`."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for path in sorted(folder.iterdir()):
        for family in text_string_to_metric_families(path.read_text()):
            for sample in family.samples:
                labels = tuple(v for name, v in sorted(sample.labels.items()) if name not in ("channel", "command"))
                found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_nights_as_they_are_told(commands_here: Any, stages_here: Any, receiving: Any, tmp_path: Path) -> None:
    shop, textfile = tmp_path / "shop", tmp_path / "textfile"
    shop.mkdir()
    textfile.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(shop / f"{number}.png")
    (shop / "11.png").write_bytes(b"no picture")
    rows = "".join(f"item-{number},{number}.png\n" for number in range(12))
    (shop / "catalogue.csv").write_text(f"item_id,image\n{rows}")
    with receiving() as receiver:
        given = [
            f"store={tmp_path / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", *stages_here.SMALL,
            f"monitor.metrics.textfile={textfile}", f"monitor.webhook.url={receiver.url}",
        ]  # fmt: skip
        first = commands_here.run("refresh", "--run", "one", "--log", "json", *given)
        one = samples(textfile)
        commands_here.run("refresh", "--run", "two", *given)
        two = samples(textfile)
        (shop / "catalogue.csv").write_text(f"item_id,image\n{rows}item-12,0.png\n")
        refused = commands_here.run("refresh", "--run", "three", *given, "gates.min_items=1000", expect=4)
        three = samples(textfile)
        commands_here.run("refresh", "--run", "sample", "--limit", "5", *given)
        sampled = samples(textfile)
        # The same night again, told otherwise: whom it tells is not a part of what a run has frozen.
        again = commands_here.run("refresh", "--run", "one", *given, "monitor.timeout_s=2")
    lines = [json.loads(line) for line in first["text"].splitlines()]
    assert {"plan", "pixels", "train", "encode", "index"} <= {line["stage"] for line in lines}
    assert any(line["shard"] is not None for line in lines)

    assert sum(one["codebooks_run_quarantined_photos"].values()) == 1
    assert (
        one["codebooks_run_stage_photos"][("encode",)] == one["codebooks_run_stage_planned_photos"][("encode",)] == 12
    )
    assert one["codebooks_run_measure"][("recall",)] == first["measures"]["recall"]
    assert one["codebooks_run_gate_passed"][("min_recall",)] == 1
    assert one["codebooks_run_peak_memory_bytes"][()] > 2**20
    assert two["codebooks_run_exit_code"][()] == 0
    assert two["codebooks_run_published"][()] == 0
    assert two["codebooks_last_success_timestamp_seconds"][()] > one["codebooks_last_success_timestamp_seconds"][()]
    for name in ("codebooks_release_created_timestamp_seconds", "codebooks_release_number"):
        assert one[name] == two[name] == three[name]
    assert three["codebooks_run_exit_code"][()] == 4
    assert three["codebooks_run_gate_passed"][("min_items",)] == 0
    assert three["codebooks_run_gate_limit"][("min_items",)] == 1000
    assert three["codebooks_last_success_timestamp_seconds"] == two["codebooks_last_success_timestamp_seconds"]

    # A sample is told of under a channel of its own: it ends no alert of the catalogue's.
    assert (textfile / "codebooks_refresh_none.prom").exists()
    assert sampled["codebooks_last_success_timestamp_seconds"] == two["codebooks_last_success_timestamp_seconds"]
    told = [json.loads(body) for *_, body in receiver.got]
    assert [(each["run"], each["verdict"], each["exit_code"]) for each in told] == [
        ("one", "published", 0), ("two", "unchanged", 0), ("three", "refused", 4), ("sample", "finished", 0),
        ("one", "published", 0),
    ]  # fmt: skip
    assert told[0]["report"] == f"{tmp_path / 'store'}/{first['report']}"
    assert Path(told[0]["report"]).is_file()
    assert told[2]["release"] == refused["release"]
    assert [gate["gate"] for gate in told[2]["gates"] if not gate["passed"]] == ["min_items"]
    # A night of a name that is taken is no success of now, or it would hide that nothing is published any more.
    head = two["codebooks_release_created_timestamp_seconds"][()]
    assert again["published"]
    assert samples(textfile)["codebooks_last_success_timestamp_seconds"][()] == pytest.approx(head, abs=1e-3)
