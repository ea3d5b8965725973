"""Plans: what a second run retries, and what it takes for nothing to be left to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from jobs.command import Arguments
from jobs.config import Config, load_config
from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeJob, ask_again, build_shards, make_worker
from pipeline.errors import (
    CodebooksError,
    ConfigError,
    Forbidden,
    InputError,
    IntegrityError,
    NotFound,
    Unavailable,
)
from pipeline.parts import read_part, write_part
from pipeline.planning import Plan, ask_refused_again, make_plan, renewal, standing
from pipeline.planning import plan as planning
from pipeline.schema import QUARANTINE, attribute_fields, items_schema, pixels_schema
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
    """Make the pixels parts of a plan as a run does, those that are not there; return the names of all."""
    build = partial(build_shards, transform_id=plan.summary.transform_id, model_id=None, precision="fp32")
    asked = ask_again(
        store,
        plan.rows,
        lambda rows, retry_of: build(rows, retry_of=retry_of),
        transform_id=plan.summary.transform_id,
        run=run,
    )
    job = EncodeJob(
        store=store, files=Files(), catalogue=CatalogueConfig(source=config.catalogue.source), images=config.images,
        encode=config.encode, model_id=None, transform_id=plan.summary.transform_id,
    )  # fmt: skip
    worker = make_worker(job)
    return [result.pixels.name for result in map(worker, asked.shards) if result.pixels is not None]


def test_a_plan_survives_its_file(config: Config) -> None:
    plan = plan_of(config, "night-1")
    again = Plan.from_bytes(plan.to_bytes())
    assert again.summary == plan.summary
    assert again.rows.equals(plan.rows)
    with pytest.raises(IntegrityError, match="another name"):
        Plan.from_bytes(plan.to_bytes()[:-20])


def test_a_fetch_refused_in_a_run_is_tried_again_by_the_same_run_and_by_the_next(config: Config, shop: Path) -> None:
    """Of one shard of four photos one vanishes between the plan and the fetch, and comes back with its old time."""
    store = open_store(str(shop / "store"))
    first = plan_of(config, "night-1")
    (shop / "2.png").rename(shop / "away.png")
    (lacking,) = decode_all(config, first, store, "night-1")
    uris = read_part(store, lacking, ["uri"])["uri"].to_pylist()
    assert [uri.rpartition("/")[2] for uri in uris] == ["0.png", "1.png", "3.png"]
    assert decode_all(config, first, store, "night-1") == [lacking], "still away: nothing is written of it"
    (shop / "away.png").rename(shop / "2.png")
    kept, more = decode_all(config, first, store, "night-1")
    assert kept == lacking, "what was answered is not asked again"
    assert [uri.rpartition("/")[2] for uri in read_part(store, more, ["uri"])["uri"].to_pylist()] == ["2.png"]
    assert decode_all(config, plan_of(config, "night-2"), store, "night-2") == [kept, more]


def test_a_part_of_an_earlier_version_that_holds_a_refused_fetch_is_no_answer(config: Config, shop: Path) -> None:
    store = open_store(str(shop / "store"))
    plan = plan_of(config, "night-1")
    (shard,) = build_shards(plan.rows, transform_id=plan.summary.transform_id, model_id=None, precision="fp32")
    count, pixels = 4, bytes(32 * 32 * 3)
    refused = [None, None, "fetch", None]
    columns = {
        **{name: shard.photos[name] for name in ("item_id", "uri", "token")},
        "digest": ["d"] * count, "pixels": [pixels] * count, "stage": refused,
        "reason": [stage and "forbidden" for stage in refused], "detail": refused,
    }  # fmt: skip
    write_part(store, shard.pixels_name, pa.table(columns, schema=pixels_schema(32)), shard.pixels_key)
    (name,) = decode_all(config, plan, store, "night-1")
    assert name != shard.pixels_name
    assert read_part(store, name, ["stage"])["stage"].null_count == count


def test_photos_that_a_frozen_plan_could_not_have_are_asked_for_again_by_a_later_attempt(
    config: Config, shop: Path
) -> None:
    store = open_store(str(shop / "store"))
    whole = plan_of(config, "control")
    (shop / "2.png").rename(shop / "away.png")
    plan = plan_of(config, "night-1")
    assert [row["status"] for row in plan.rows.to_pylist()] == ["added", "added", "refused", "added"]
    assert ask_refused_again(plan, config, store, Files()) is plan, "still away"
    (shop / "away.png").rename(shop / "2.png")
    again = ask_refused_again(plan, config, store, Files())
    assert again.rows.drop_columns(["shard"]).equals(whole.rows.drop_columns(["shard"]))
    assert again.rows["shard"].to_pylist() == [0, 0, 1, 0]
    assert {**again.summary.counts, "shards": 1} == whole.summary.counts
    assert len(decode_all(config, again, store, "night-1")) == 2


@pytest.mark.parametrize(
    ("fault", "files"), [(Unavailable("HTTP 503"), 4), (Forbidden("HTTP 403 AccessDenied"), 4), (NotFound("404"), 4)]
)
def test_a_catalogue_of_which_nothing_answers_is_temporary(config: Config, fault: CodebooksError, files: int) -> None:
    class Failing(Files):
        def list(self, uri_prefix: str, *, after: str = "") -> Any:
            raise Forbidden("no listing")

        def stat(self, uri: str) -> Any:
            raise fault

    expected = Unavailable if isinstance(fault, Unavailable) else InputError
    with pytest.raises(expected, match=rf"none of the catalogue's {files} photos can be used"):
        make_plan(config, config.store.open(), Failing(), run="night-1", limit=None)


def test_finished_parts_of_an_unpublished_run_are_used_by_the_next(config: Config, shop: Path) -> None:
    store = open_store(str(shop / "store"))
    made = decode_all(config, plan_of(config, "night-1"), store, "night-1")
    assert len(made) == 1
    assert decode_all(config, plan_of(config, "night-2"), store, "night-2") == made


def test_a_catalogue_of_which_no_photo_can_be_used_says_why(config: Config, shop: Path) -> None:
    for photo in shop.glob("*.png"):
        photo.unlink()
    with pytest.raises(InputError, match=r"none of the catalogue's 4 photos can be used.*missing"):
        plan_of(config, "night-1")


def shop_with(folder: Path, categories: list[str]) -> None:
    rows = "".join(f"item-{number},{number}.png,{category}\n" for number, category in enumerate(categories))
    (folder / "catalogue.csv").write_text("item_id,image,department\n" + rows)


def told_config(shop: Path, kind: str = "cvae", category: str | None = "department") -> Config:
    overrides = [f"store={shop / 'store'}", f"catalogue.source={shop / 'catalogue.csv'}", f"model.kind={kind}"]
    overrides += [f"catalogue.category={category}"] if category else []
    return load_config(Arguments(overrides=(*overrides, "images.size=32")))


@pytest.fixture
def yesterday(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config, Store], None]:
    """Make the channel's release one of all photos of a config's catalogue, as its model `m` encoded them."""

    def publish(config: Config, store: Store) -> None:
        plan = plan_of(config, "night-1")
        names = decode_all(config, plan, store, "night-1")
        count, transform = plan.rows.num_rows, plan.summary.transform_id
        assert len(names) == 1
        held: dict[str, Any] = {
            "digest": ["d"] * count, "latents_part": ["latents/m/x.parquet"] * count, "latents_row": range(count),
            "pixels_part": names * count, "pixels_row": range(count),
        }  # fmt: skip
        schema = items_schema(attribute_fields(plan.rows.schema))
        columns = [
            pa.array(list(held[field.name]), field.type) if field.name in held else plan.rows[field.name]
            for field in schema
        ]
        items = pa.Table.from_arrays([*columns], schema=schema)
        manifest = SimpleNamespace(
            release_id="r1", model_id="m", transform_id=transform, counts={"photos": count},
            config=planning.release_config(config), sample=None, run="night-1",
        )  # fmt: skip
        monkeypatch.setattr(standing, "read_head", lambda *_: SimpleNamespace(number=1, release_id="r1"))
        for module in (planning, standing):
            monkeypatch.setattr(module, "read_manifest", lambda *_: manifest)
        monkeypatch.setattr(
            planning, "read_table", lambda _s, _m, role, **_: items if role == "items" else QUARANTINE.empty_table()
        )
        monkeypatch.setattr(standing, "find_bundle", lambda *_: "m")

    return publish


def test_relabelled_photos_are_encoded_again_by_a_model_that_is_told_categories(
    shop: Path, yesterday: Callable[[Config, Store], None]
) -> None:
    store = open_store(str(shop / "store"))
    shop_with(shop, ["Hats", "", "Bags", "Bags"])
    config = told_config(shop)
    yesterday(config, store)
    unchanged = plan_of(config, "night-2")
    assert not unchanged.summary.encode_all
    assert unchanged.summary.counts["to_encode"] == 0
    assert planning.nothing_to_do(unchanged, store, config)
    shop_with(shop, ["Hats", "Hats", "", "Bags"])  # a category for one photo, none any more for another
    plan = plan_of(config, "night-2")
    counts = {name: plan.summary.counts[name] for name in ("same", "relabelled", "to_encode", "to_fetch", "shards")}
    assert counts == {"same": 4, "relabelled": 2, "to_encode": 2, "to_fetch": 0, "shards": 1}
    assert not planning.nothing_to_do(plan, store, config)
    assert plan.rows["shard"].to_pylist() == [None, 0, 0, None]
    assert plan.rows["latents_row"].to_pylist() == [0, None, None, 3]
    assert plan.rows["pixels_row"].to_pylist() == [0, 1, 2, 3]
    assert Plan.from_bytes(plan.to_bytes()).rows.equals(plan.rows)
    # The pixels have expired: these two are fetched once more, and the others still name the part.
    for entry in list(store.list("pixels/")):
        store.delete(entry.name)
    plan = plan_of(config, "night-3")
    assert (plan.summary.counts["to_encode"], plan.summary.counts["to_fetch"]) == (2, 2)
    assert plan.rows["pixels_row"].to_pylist() == [0, None, None, 3]


def test_relabelled_photos_keep_their_latents_with_other_models(
    shop: Path, yesterday: Callable[[Config, Store], None]
) -> None:
    store = open_store(str(shop / "store"))
    shop_with(shop, ["Hats", "Hats", "Bags", "Bags"])
    config = told_config(shop, kind="vae")
    yesterday(config, store)
    shop_with(shop, ["Hats", "Bags", "", "Bags"])
    plan = plan_of(config, "night-2")
    assert (plan.summary.counts["relabelled"], plan.summary.counts["to_encode"]) == (2, 0)
    assert plan.rows["latents_part"].null_count == 0


def test_what_a_model_could_not_encode_is_asked_of_another_model_and_not_of_the_same(
    shop: Path, yesterday: Callable[[Config, Store], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(shop / "store"))
    config = told_config(shop, kind="vae", category=None)
    yesterday(config, store)
    read = planning.read_table
    items = read(store, None, "items")
    sick, crashed = items.slice(0, 1).to_pylist()[0], items.slice(1, 1).to_pylist()[0]
    quarantine = pa.Table.from_pylist(
        [
            {**sick, "stage": "encode", "reason": "not_finite", "detail": "why", "first_seen": "night-1"},
            {**crashed, "stage": "decode", "reason": "crashed", "detail": "how", "first_seen": "night-1"},
        ],
        schema=QUARANTINE,
    )
    for module in (planning, renewal):
        monkeypatch.setattr(
            module, "read_table", lambda _s, _m, role, **_: items.slice(2) if role == "items" else quarantine
        )
    same = plan_of(config, "night-2").rows.slice(0, 2)
    assert same.select(["status", "reason"]).to_pylist() == [
        {"status": "refused", "reason": "not_finite"},
        {"status": "refused", "reason": "crashed"},
    ]
    monkeypatch.setattr(standing, "find_bundle", lambda *_: "another")
    monkeypatch.setattr(planning, "latent_bytes", lambda *_: 64)
    monkeypatch.setattr(planning, "latent_dim", lambda *_: 16)
    other = plan_of(config, "night-3").rows.slice(0, 2)
    assert other.select(["status", "reason", "retried"]).to_pylist() == [
        {"status": "added", "reason": None, "retried": False},
        {"status": "refused", "reason": "crashed", "retried": False},
    ]


def test_a_model_that_is_told_categories_needs_their_column(shop: Path) -> None:
    shop_with(shop, ["Hats"] * 4)
    with pytest.raises(ConfigError, match=r"catalogue\.category is not set; set it"):
        plan_of(told_config(shop, category=None), "night-1")
    keys = {plan_of(told_config(shop, category=name), "night-1").summary.train_key for name in ("department", "image")}
    assert len(keys) == 2, "a model told another column is another model"
    shared = {plan_of(told_config(shop, "vae", name), "night-1").summary.train_key for name in ("department", None)}
    assert len(shared) == 1
