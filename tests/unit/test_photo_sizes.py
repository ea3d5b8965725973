"""Sizes are looked at before bytes are read, wherever a photo lies; and a refusal holds no bytes of a file."""

from __future__ import annotations

import io
import json
import re
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalogue import CatalogueConfig, PhotoReader, catalogue_files, read_photos, resolve_tokens
from pipeline.errors import InputError, PhotoRefused, TooLarge
from pipeline.images import ImagesConfig, decode
from pipeline.images.containers import described
from pipeline.storage import LocalStore, open_store

MOST = 1000
GIB = 1 << 30


def fetched(source: Path, **settings: Any) -> dict[str, bytes | str]:
    """Return each item's bytes, or its refusal in words, as the plan or the reader gives it."""
    config = CatalogueConfig(source=str(source), **settings)
    files = catalogue_files(config)
    table, _ = resolve_tokens(read_photos(config, files), config, files)
    usable = table.filter(pa.array([reason is None for reason in table["reason"].to_pylist()]))
    found: dict[str, bytes | str] = {row["item_id"]: row["reason"] for row in table.to_pylist() if row["reason"]}
    answers = PhotoReader(files, config, max_bytes=MOST).read(usable) if usable.num_rows else []
    for key, answer in zip(usable["item_id"].to_pylist(), answers, strict=True):
        found[key] = f"{answer.stage}: {answer.reason}" if isinstance(answer, PhotoRefused) else answer
    return found


def sparse(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        handle.truncate(size)


def table(folder: Path) -> Path:
    sparse(folder / "large.jpg", 5 * GIB)
    (folder / "edge.jpg").write_bytes(b"e" * MOST)
    (folder / "c.csv").write_text("item_id,image\nlarge,large.jpg\nedge,edge.jpg\n")
    return folder / "c.csv"


def photos(folder: Path) -> Path:
    sparse(folder / "p" / "large.jpg", 5 * GIB)
    (folder / "p" / "edge.jpg").write_bytes(b"e" * MOST)
    return folder / "p"


def shard(folder: Path) -> Path:
    """A shard whose member `large.jpg` has 3 GiB of zero bytes that lie nowhere: a hole of the file."""
    path = folder / "0.tar"
    member = tarfile.TarInfo("edge.jpg")
    member.size = MOST
    head = io.BytesIO()
    with tarfile.open(fileobj=head, mode="w") as tar:
        tar.addfile(member, io.BytesIO(b"e" * MOST))
    large = tarfile.TarInfo("large.jpg")
    large.size = 3 * GIB
    with path.open("wb") as handle:
        handle.write(head.getvalue()[: 512 + 1024])
        handle.write(large.tobuf(tarfile.USTAR_FORMAT))
        handle.truncate(handle.tell() + large.size + 1024)
    return path


def embedded(folder: Path) -> Path:
    image = [b"l" * 50_000, b"e" * MOST]
    pq.write_table(pa.table({"item_id": ["large", "edge"], "image": image}), folder / "c.parquet")
    return folder / "c.parquet"


def lines(folder: Path) -> Path:
    rows = [("large", "bGFy" * 500_000), ("edge", "ZWVl" * 333 + "ZQ==")]
    text = "".join(json.dumps({"item_id": key, "image": f"data:image/jpeg;base64,{data}"}) + "\n" for key, data in rows)
    (folder / "c.jsonl").write_text(text)
    return folder / "c.jsonl"


@pytest.mark.parametrize("make", [table, photos, shard, embedded, lines])
def test_a_long_photo_is_refused_unread_and_the_limit_itself_is_not(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fetched(source) == {"large": "decode: too_many_bytes", "edge": b"e" * MOST}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB; the photo has gigabytes


def shop(folder: Path) -> Path:
    """A table on an object store, whose listing tells the sizes."""
    store = open_store(f"memory://{folder.name}")
    store.put("large.jpg", b"l" * (MOST + 1))
    store.put("edge.jpg", b"e" * MOST)
    store.put("c.csv", b"item_id,image\nlarge,large.jpg\nedge,edge.jpg\n")
    return Path(f"memory://{folder.name}/c.csv")


@pytest.mark.parametrize("make", [table, photos, shard, shop], ids=lambda make: str(make.__name__))
def test_what_is_known_to_be_too_long_is_refused_in_the_plan(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    source = str(make(tmp_path)).replace("memory:/", "memory://")
    config = CatalogueConfig(source=source)
    files = catalogue_files(config)
    found = read_photos(config, files)
    rows, _ = resolve_tokens(found, config, files, max_bytes=MOST)
    told = {row["item_id"]: (row["stage"], row["reason"], row["token"] == "") for row in rows.to_pylist()}
    assert told == {"edge": (None, None, False), "large": ("plan", "too_many_bytes", True)}
    assert f"images.max_bytes={MOST:,}" in next(row["detail"] for row in rows.to_pylist() if row["detail"])
    free, _ = resolve_tokens(found, config, files)
    assert free["reason"].null_count == 2
    # A photo that lives was read by another limit: as long as it is the same, nothing of it is fetched.
    living, _ = resolve_tokens(found, config, files, known=free.select(["uri", "token"]), max_bytes=MOST)
    assert living["reason"].null_count == 2
    assert living["token"].equals(free["token"])


def test_stores_read_no_more_than_they_may(tmp_path: Path) -> None:
    sparse(tmp_path / "a", GIB)
    for store in (LocalStore(str(tmp_path)), open_store("memory://sizes")):
        store.put("b", b"12345")
        assert store.fetch("b", max_bytes=5).data == b"12345"
        assert store.fetch("b", start=1, end=4, max_bytes=3).data == b"234"
        for bounds in ({"max_bytes": 4}, {"start": 1, "max_bytes": 3}):
            with pytest.raises(TooLarge, match=f"more than {bounds['max_bytes']}"):
                store.fetch("b", **bounds)  # type: ignore[arg-type]
        assert store.fetch("b").tokens == (store.stat("b").token,)
    with pytest.raises(TooLarge, match="1,073,741,824 bytes are more than 1,000"):
        LocalStore(str(tmp_path)).fetch("a", max_bytes=1000)


def test_attributes_of_a_shard_are_no_gigabytes(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a.json")
    member.size = 3 * GIB
    with (tmp_path / "0.tar").open("wb") as handle:
        handle.write(member.tobuf(tarfile.USTAR_FORMAT))
        handle.truncate(member.size + 2048)
    config = CatalogueConfig(source=str(tmp_path / "0.tar"))
    with pytest.raises(InputError, match=r"a\.json.*has 3,221,225,472 bytes"):
        read_photos(config, catalogue_files(config))


SECRETS = {
    "credentials": b"[default]\naws_access_key_id = AKIASECRET\naws_secret_access_key = geheim\n",
    "html": b"<!DOCTYPE html><html>geheim</html>",
    "json": b'{"password": "geheim"}',
    "svg": b"<?xml version='1.0'?><svg>geheim</svg>",
    "binary": b"\x00\x01geheim\x02",
    "pdf": b"%PDF-1.7 geheim",
    "video": b"\x00\x00\x00\x18ftypmp42geheim",
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\x06GEHEgeheim\x00\x00\x00\x00",
    "jpeg": b"\xff\xd8\xff\xe0geheim",
    "gif": b"GIF89ageheim",
    "bmp": b"BMgeheimgeheimgeheimgeheimgeheimgeheimgeheimgeheim",
    "tiff": b"II*\x00geheimgeheimgeheim",
    "webp": b"RIFF\x40\x00\x00\x00WEBPgeheim",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_a_refusal_holds_no_bytes_of_the_file(kind: str) -> None:
    with pytest.raises(PhotoRefused) as caught:
        decode(SECRETS[kind], ImagesConfig())
    text = str(caught.value)
    for word in re.findall(rb"[A-Za-z]{4,}", SECRETS[kind]):
        if word.decode().lower() not in ("html", "doctype", "xml", "version", "ftyp", "webp", "riff"):
            assert word.decode().lower() not in text.lower()


def test_what_is_no_picture_is_named() -> None:
    named = {
        b"<!doctype HTML>": "an HTML page", b"\n <html lang='de'>": "an HTML page", b'{"a": 1}': "text, perhaps JSON",
        b"<svg xmlns='x'/>": "SVG", b"<?xml version='1.0'?>\n<!-- x --><svg/>": "SVG", b"<?xml ?><rss/>": "XML",
        b"plain words\n": "text", b"\x01\x02": "bytes of an unknown kind", b"%PDF-1": "a PDF",
        b"\0" * 600: "nothing but zero bytes",
        b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS; fetch the files themselves",
        b"\0\0\0\x18ftypqt  ": "a video (MP4, QuickTime or the like)", b"PK\3\4": "a ZIP archive or an office document",
    }  # fmt: skip
    assert {data: described(data) for data in named} == named
