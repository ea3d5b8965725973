"""Damage every file that a real release rests on, and see who refuses it by its name: `verify`, and the reader.

Two nights of a rendered catalogue are refreshed by the real command, its stages in this process (tables, semantic IDs,
a signature), and customers' events become tables beside each. Then, one damage at a time: a byte changed at random
places, every byte of the first and last four, each file cut, emptied, lengthened, missing, or that of the other
release in its place. The reader has the damaged file in no cache and asks a question that reads it.

    python tests/benchmarks/bench_flips.py --places 1000 --json tests/benchmarks/results/flips.json
"""

from __future__ import annotations

import json
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nights_here import codebooks
from options import Options
from record import made_on, write

from pipeline.errors import CodebooksError
from pipeline.images.render import render_catalogue
from pipeline.keys import digest_of
from pipeline.reader import Release, open_release
from pipeline.release import Manifest, published_digest, read_head, read_manifest, read_trusted_keys, verify_release
from pipeline.release import verify as verify_room
from pipeline.storage import Store, open_store

TABLES = ["tables.vectors=true", "tables.neighbours=10", "semantic_ids={levels: [16, 8]}"]


class Damage(NamedTuple):
    """One thing done to one file. data: what then lies there, None: nothing."""

    kind: str
    name: str
    data: bytes | None


class Site(NamedTuple):
    """Where a release lies, and what is needed to ask it. photo: the bytes of one of the catalogue's files."""

    store: Store
    release: str
    key: Path
    photo: bytes
    scratch: Path


def key_pair(folder: Path) -> tuple[Path, Path]:
    key, pem = Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    private, public = folder / "key.pem", folder / "key.pub"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def two_nights(base: Path, items: int) -> tuple[Site, str]:
    """Return the newer release and the other one's id, both signed, of one model and two catalogues."""
    private, public = (base / "key.pem", base / "key.pub") if (base / "key.pem").exists() else key_pair(base)
    for number, seed in enumerate((1, 2)):
        folder = base / f"catalogue-{number}"
        if folder.exists():  # of a call before
            continue
        render_catalogue(folder, items=items, seed=seed)
        codebooks(
            "refresh", "--run", f"night-{number}", f"store={base / 'store'}",
            f"catalogue.source={folder / 'catalogue.csv'}", "catalogue.category=category", "model.kind=vae",
            "model.latent_dim=16", "train.epochs=1", "images.size=32", "encode.actors=1",
            f"publish.sign.key={private}", f"publish.channel=night-{number}", "gates.min_recall=0", *TABLES,
        )  # fmt: skip
    store = open_store(str(base / "store"))
    releases = []
    for number in range(2):
        head = read_head(store, f"night-{number}")
        assert head is not None
        releases.append(head.release_id)
        events = base / f"events-{number}.parquet"
        if events.exists():
            continue
        rng, known = np.random.default_rng(number), open_release(store.url, release_id=head.release_id).item_ids()
        rows = {"customer": [f"c{who % 40}" for who in range(200)], "item": rng.choice(known, 200).tolist()}
        pq.write_table(pa.table(rows), events)
        codebooks("recommend", f"store={base / 'store'}", "--events", str(events), "--release", head.release_id)
    photo = next((base / "catalogue-1" / "photos").glob("sku-00003-0.jpg")).read_bytes()
    return Site(store, releases[1], public, photo, base / "scratch"), releases[0]


def files_of(store: Store, release: str) -> dict[str, str]:
    """Return what each file of a release is, by name: its role, `part`, the bundle's own names, `beside`."""
    manifest = read_manifest(store, release)
    found = {f"releases/{release}/manifest.json": "manifest.json"}
    for role, entries in manifest.files.items():
        found |= {entry.name: role for entry in entries}
    found |= {part.name: "part" for part in manifest.parts}
    for entry in store.list(f"models/{manifest.model_id}/"):
        found[entry.name] = entry.name.rpartition("/")[2].partition("-")[0]
    for entry in store.list(f"releases/{release}/"):
        if entry.name not in found:
            found[entry.name] = "signature" if "/signature-" in entry.name else entry.name.split("/")[-1].split("-")[0]
    return found


def damages(site: Site, other: str, places: int, dice: random.Random) -> Iterator[Damage]:
    files, swaps = files_of(site.store, site.release), files_of(site.store, other)
    held = {name: site.store.get(name) for name in files}
    for number in range(places):
        name = sorted(files)[number % len(files)]
        yield Damage("byte", name, flipped(held[name], dice.randrange(len(held[name])), dice))
    for name, data in sorted(held.items()):
        for place in sorted({*range(min(4, len(data))), *range(max(0, len(data) - 4), len(data))}):
            yield Damage("header or end", name, flipped(data, place, dice))
        for size in (0, 1, len(data) // 2, len(data) - 1):
            yield Damage("cut", name, data[:size])
        yield Damage("longer", name, data + b"\0")
        if files[name] != "recommendations.json":  # without it the folder is one that was never finished
            yield Damage("missing", name, None)
        for twin in sorted(each for each, role in swaps.items() if role == files[name]):
            if site.store.get(twin) != data:
                yield Damage("swapped", name, site.store.get(twin))


def flipped(data: bytes, place: int, dice: random.Random) -> bytes:
    return data[:place] + bytes([data[place] ^ dice.randrange(1, 256)]) + data[place + 1 :]


def questions(manifest: Manifest, photo: bytes) -> dict[str, Callable[[Release], object]]:
    """Return, by the role of a file, what makes the reader read it."""
    opened: Callable[[Release], object] = lambda release: release.similar(release.item_ids()[0], 3)  # noqa: E731
    by_photo: Callable[[Release], object] = lambda release: release.similar_photo(photo, 3)  # noqa: E731
    asked = dict.fromkeys(["manifest.json", "items", "index", "features"], opened)
    asked |= {"signature": opened, "encoder.onnx": by_photo, "config.json": by_photo}
    asked |= {
        role: lambda release, role=role: release.table(role)
        for role in manifest.files
        if role not in {"items", "index", "features", "report", "quarantine", "changes"}
    }
    unknown: Callable[[Release], object] = lambda release: release.opened.refusals("never-seen")  # noqa: E731
    asked["quarantine"] = unknown
    return asked | {"part": lambda release: release.latents(release.item_ids())}


def refused_by(site: Site, right: str, ask: Callable[[Release], object] | None) -> dict[str, str | None]:
    """Return what `verify` and the reader say, None where they say nothing; without `ask` the reader is not asked.

    right: the sha256 of what should lie there. The reader has every other file in its cache, to be quick, and not this.
    """
    trusted = read_trusted_keys([site.key])
    said: dict[str, str | None] = {}
    digest = published_digest(site.store, site.release)
    try:
        problems = verify_release(site.store, site.release, expect_sha256=digest, trusted=trusted).problems
        said["verify"] = "; ".join(problems) or None
    except CodebooksError as error:
        said["verify"] = str(error)
    if ask is not None:
        (site.scratch / right[:2] / right).unlink(missing_ok=True)
        try:
            ask(open_release(site.store.url, channel="night-1", cache_dir=site.scratch, trusted_keys=[site.key]))
            said["reader"] = None
        except CodebooksError as error:
            said["reader"] = str(error)
    return said


def manifest_alone(site: Site) -> int:
    """Return the problems that are found by what the manifest lists, as it was before: the negative control."""
    digest = published_digest(site.store, site.release)
    with (
        mock.patch.object(verify_room, "listed_beside", return_value=()),
        mock.patch.object(verify_room, "bundle_problems", return_value=()),
    ):
        try:
            return len(verify_release(site.store, site.release, expect_sha256=digest).problems)
        except CodebooksError:
            return 1


def measured(site: Site, other: str, places: int, seed: int) -> dict[str, object]:
    roles = files_of(site.store, site.release)
    asked = questions(read_manifest(site.store, site.release), site.photo)
    counts: dict[str, Counter[str]] = {"tried": Counter(), "verify": Counter(), "reader": Counter()}
    asked_reader: Counter[str] = Counter()
    missed, alone, by_role = [], 0, Counter[str]()
    for damage in damages(site, other, places, random.Random(seed)):
        data, role = site.store.get(damage.name), roles[damage.name]
        site.store.delete(damage.name)
        if damage.data is not None:
            site.store.put_if_absent(damage.name, damage.data)
        said = refused_by(site, digest_of(data), asked.get(role))
        alone += damage.kind == "missing" and manifest_alone(site) > 0
        site.store.delete(damage.name)
        site.store.put_if_absent(damage.name, data)
        counts["tried"][damage.kind] += 1
        by_role[role] += 1
        asked_reader[damage.kind] += "reader" in said
        for who, text in said.items():
            # Of a file that is gone it may be the release, or the folder, that is named.
            names = [damage.name.rpartition("/")[2], *([site.release, "/sids-"] if damage.data is None else [])]
            named = text is not None and any(name in text for name in names)
            counts[who][damage.kind] += named
            if not named:
                missed.append({"by": who, "kind": damage.kind, "file": damage.name, "said": text and text[:300]})
    return {
        "tried": dict(counts["tried"]),
        "refused_by_verify": dict(counts["verify"]),
        "asked_of_reader": dict(asked_reader),
        "refused_by_reader": dict(counts["reader"]),
        "missed": missed[:50],
        "missing_files_found_by_the_manifest_alone": alone,
        "files": len(roles),
        "bytes": sum(len(site.store.get(name)) for name in roles),
        "damages_by_role": dict(sorted(by_role.items())),
    }


def main() -> int:
    options = Options(
        __doc__, places=1000, items=120, seed=0,
        base=(Path, "a folder to keep the releases in; a second call damages them anew"),
        prepare=(False, "make the releases and damage nothing yet"), json=Path,
    ).parse_args()  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        base = options.base or Path(folder)
        (base / "scratch").mkdir(parents=True, exist_ok=True)
        site, other = two_nights(base, options.items)
        trusted, digest = read_trusted_keys([site.key]), published_digest(site.store, site.release)
        verify_release(site.store, site.release, expect_sha256=digest, trusted=trusted).require()  # before any damage
        if options.prepare:
            return 0
        began = time.monotonic()
        result = measured(site, other, options.places, options.seed)
        result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result, indent=1))
    if options.json:
        write(options.json, {**made_on(f"Python {platform.python_version()}"), "results": result})
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
