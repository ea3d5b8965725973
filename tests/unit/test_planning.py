"""Plans: what a second run retries, and what it takes for nothing to be left to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import pytest
from PIL import Image

from jobs.command import Arguments
from jobs.config import Config, load_config
from jobs.planning import Plan, make_plan
from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeJob, build_shards, make_worker
from pipeline.errors import InputError, IntegrityError
from pipeline.storage import Files, Store, open_store


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (40, 40), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
    rows = "".join(f"item-{number},{number}.png\n" for number in range(4))
    (tmp_path / "catalogue.csv").write_text("item_id,image\n" + rows)
    return tmp_path


@pytest.fixture
def config(shop: Path) -> Config:
    overrides = (f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", "model.kind=vae")
    return load_config(Arguments(overrides=(*overrides, "images.size=32")))


def plan_of(config: Config, run: str) -> Plan:
    return make_plan(config, config.store.open(), Files(), run=run, limit=None)


def decode_all(config: Config, plan: Plan, store: Store, run: str) -> list[str]:
    """Make the pixels parts of a plan as an actor does; return their names."""
    shards = build_shards(
        plan.rows, transform_id=plan.summary.transform_id, model_id=None, precision="fp32", retry_of=run
    )
    job = EncodeJob(
        store=store, files=Files(), catalogue=CatalogueConfig(source=config.catalogue.source), images=config.images,
        encode=config.encode, model_id=None, transform_id=plan.summary.transform_id,
    )  # fmt: skip
    worker = make_worker(job)
    return [str(worker(shard).pixels.name) for shard in shards]  # type: ignore[union-attr]


def test_a_plan_survives_its_file(config: Config) -> None:
    plan = plan_of(config, "night-1")
    again = Plan.from_bytes(plan.to_bytes())
    assert again.summary == plan.summary
    assert again.rows.equals(plan.rows)
    with pytest.raises(IntegrityError, match="another name"):
        Plan.from_bytes(plan.to_bytes()[:-20])


def test_a_fetch_refused_in_an_unpublished_run_is_tried_again_by_the_next(config: Config, shop: Path) -> None:
    store = open_store(str(shop / "store"))
    first = plan_of(config, "night-1")
    (shop / "2.png").rename(shop / "away.png")  # it vanishes between the plan and the fetch
    refused = decode_all(config, first, store, "night-1")
    (shop / "away.png").rename(shop / "2.png")
    second = plan_of(config, "night-2")
    assert pc.all(second.rows["retried"]).as_py()
    names = decode_all(config, second, store, "night-2")
    assert not set(names) & set(refused), "the part that holds the refusal does not answer"


def test_finished_parts_of_an_unpublished_run_are_used_by_the_next(config: Config, shop: Path) -> None:
    store = open_store(str(shop / "store"))
    made = decode_all(config, plan_of(config, "night-1"), store, "night-1")
    second = plan_of(config, "night-2")
    assert not pc.any(second.rows["retried"]).as_py()
    assert decode_all(config, second, store, "night-2") == made


def test_a_catalogue_of_which_no_photo_can_be_used_says_why(config: Config, shop: Path) -> None:
    for photo in shop.glob("*.png"):
        photo.unlink()
    with pytest.raises(InputError, match=r"none of the catalogue's 4 photos can be used.*missing"):
        plan_of(config, "night-1")
