"""Photos to which the model gives no finite latents: single ones are quarantined, many refuse the release."""

from __future__ import annotations

import io
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.encoding import (
    Encoder,
    PhotoDecoder,
    Shard,
    ShardWorker,
    assign_shards,
    build_shards,
    collect_rows,
    split_done,
)
from pipeline.encoding.unfit import read_unfit
from pipeline.errors import GateRefused, InputError, IntegrityError, PhotoRefused
from pipeline.evaluation import GatesConfig
from pipeline.images import ImagesConfig
from pipeline.models.base import Batch, Latents, Losses, Model, Step, to_float
from pipeline.parts import find_part, read_part
from pipeline.quality.examining import check_encoded
from pipeline.schema import latents_schema, plan_schema
from pipeline.storage import Store, open_store

SIZE, PHOTOS = 8, 6
TRANSFORM = "0123456789abcdef"


class Brightness(Model):
    """Each channel's share of a photo's brightness: 0 / 0 for a black photo; log_var is infinite for a white one."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, self.latent_dim, self.has_log_var = SIZE, 3, True

    def forward(self, batch: Batch, step: Step) -> Losses:
        raise NotImplementedError

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        channels = to_float(images).mean(dim=(2, 3))
        return Latents(channels / channels.sum(dim=1, keepdim=True), torch.log1p(-channels), None)


class Photos:
    """Random pictures by URI, but for those of one colour."""

    def __init__(self, colours: dict[str, int]) -> None:
        self.colours = colours

    def read(self, photos: pa.Table) -> list[bytes | PhotoRefused]:
        return [self._photo(uri) for uri in photos["uri"].to_pylist()]

    def _photo(self, uri: str) -> bytes:
        pixels = np.random.default_rng(int(uri[1:])).integers(1, 255, (SIZE, SIZE, 3), np.uint8)
        if uri in self.colours:
            pixels[:] = self.colours[uri]
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        return sink.getvalue()


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4().hex}")


def worker(store: Store, **colours: int) -> ShardWorker:
    decoder = PhotoDecoder(Photos(colours), ImagesConfig(size=SIZE))
    return ShardWorker(store, decoder, Encoder(Brightness(), batch_size=4))


def make_plan(**columns: list[Any]) -> pa.Table:
    given = {
        "item_id": [f"i{n}" for n in range(PHOTOS)], "uri": [f"u{n}" for n in range(PHOTOS)], "view": [0] * PHOTOS,
        "status": ["added"] * PHOTOS, "token": [f"t{n}" for n in range(PHOTOS)], "retried": [False] * PHOTOS, **columns,
    }  # fmt: skip
    schema = plan_schema([])
    made = [pa.array(given.get(field.name, [None] * PHOTOS), field.type) for field in schema]
    return assign_shards(pa.Table.from_arrays(made, schema=schema), image_size=SIZE, encode_all=True)


def only_shard(plan: pa.Table, model_id: str | None = "m") -> Shard:
    [shard] = build_shards(plan, transform_id=TRANSFORM, model_id=model_id, precision="fp32")
    return shard


@pytest.mark.parametrize(("uri", "colour"), [("u2", 0), ("u0", 255), ("u5", 0)])
def test_a_photo_without_finite_latents_is_a_row_of_the_quarantine(store: Store, uri: str, colour: int) -> None:
    plan = make_plan()
    shard = only_shard(plan)
    result = worker(store, **{uri: colour})(shard)
    assert (result.photos, result.refused) == (PHOTOS, 1)
    items, refused = collect_rows(store, plan, [shard], [result])
    [row] = refused.to_pylist()
    assert (row["uri"], row["stage"], row["reason"]) == (uri, "encode", "not_finite")
    assert items["uri"].to_pylist() == [f"u{n}" for n in range(PHOTOS) if f"u{n}" != uri]
    assert items["latents_row"].to_pylist() == list(range(PHOTOS - 1))
    assert items["pixels_row"].to_pylist() == [n for n in range(PHOTOS) if f"u{n}" != uri]
    # The others' latents are those that they have without it.
    clean = open_store(f"memory://{uuid.uuid4().hex}")
    worker(clean)(shard)
    kept = [n for n in range(PHOTOS) if f"u{n}" != uri]
    whole = read_part(clean, shard.latents_name or "")["mean"].to_pylist()
    assert read_part(store, shard.latents_name or "")["mean"].to_pylist() == [whole[n] for n in kept]
    # A part without such a photo says nothing of it, so its bytes are as ever.
    assert read_unfit(read_part(clean, shard.latents_name or "").schema) == []
    done, todo = split_done([shard], store)
    assert ([made.refused for made in done], todo) == ([1], [])
    again = worker(store)(shard)
    assert (again.reused, again.refused) == (True, 1)


def test_a_kept_photo_without_finite_latents_too(store: Store) -> None:
    fetched = only_shard(make_plan(), model_id=None)
    worker(store, u3=0)(fetched)
    order = [4, 3, 0, 5, 1, 2]  # the plan names the part's rows in another order
    plan = make_plan(
        item_id=[f"i{n}" for n in order],
        uri=[f"u{n}" for n in order],
        token=[f"t{n}" for n in order],
        status=["same"] * PHOTOS,
        pixels_part=[fetched.pixels_name] * PHOTOS,
        pixels_row=order,
    )
    shard = only_shard(plan)
    assert shard.from_pixels == fetched.pixels_name
    result = worker(store)(shard)
    items, refused = collect_rows(store, plan, [shard], [result])
    assert [(row["uri"], row["reason"]) for row in refused.to_pylist()] == [("u3", "not_finite")]
    assert items["pixels_row"].to_pylist() == [4, 0, 5, 1, 2]
    assert result.refused == 1


def test_a_part_that_lacks_rows_without_saying_so_is_refused(store: Store) -> None:
    shard = only_shard(make_plan())
    worker(store)(shard)
    name = shard.latents_name or ""
    short = read_part(store, name).slice(1)
    sink = io.BytesIO()
    pq.write_table(short, sink)
    store.put(name, sink.getvalue())
    assert find_part(store, name, shard.latents_key or "") is not None  # the key alone does not tell
    with pytest.raises(IntegrityError, match="holds 5 rows, expected 6"):
        worker(store)(shard)


def tables(broken: int, live: int, other: int = 0) -> tuple[pa.Table, pa.Table]:
    items = pa.table({"item_id": [f"i{n}" for n in range(live)]})
    reasons = ["not_finite"] * broken + ["missing"] * other
    names = ["item_id", "uri", "reason", "detail"]
    refused = pa.table({name: [f"x{n}" for n in range(len(reasons))] for name in names})
    return items, refused.set_column(2, "reason", pa.array(reasons, pa.string()))


def test_a_broken_model_is_refused_and_a_single_photo_is_not() -> None:
    check_encoded(*tables(1, 59), GatesConfig())
    check_encoded(*tables(5, 95), GatesConfig())  # the limit itself passes
    check_encoded(*tables(0, 10, other=90), GatesConfig())  # not the model's fault
    for broken, live in ((6, 94), (60, 0), (2, 1)):
        with pytest.raises(GateRefused, match=rf"{broken} of {broken + live} photos") as caught:
            check_encoded(*tables(broken, live), GatesConfig())
        assert caught.value.exit_code == 4
    check_encoded(*tables(6, 94), GatesConfig(max_not_finite=None))
    with pytest.raises(InputError, match=r"none of 3 photos can be used: \{'not_finite': 2, 'missing': 1\}"):
        check_encoded(*tables(2, 0, other=1), GatesConfig(max_not_finite=None))


def test_the_schema_of_such_a_part_is_that_of_every_other(store: Store) -> None:
    shard = only_shard(make_plan())
    worker(store, u1=0)(shard)
    assert read_part(store, shard.latents_name or "").schema.equals(latents_schema(3, log_var=True))
