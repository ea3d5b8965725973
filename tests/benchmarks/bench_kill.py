"""Kill -9 the whole process tree of a refresh at random moments and run the same command again.

Half of the kills happen with the bundle already on the store, half from nothing. The retry must succeed by itself and
end with the digests of an undisturbed run: parts, items and index; from nothing also the model_id.

    python tests/benchmarks/bench_kill.py --photos 3000 --kills 5 --json kills.json
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from options import Options
from record import made_on, write
from watched import of_each

from pipeline.images.render import render_catalogue

RUN = "night"


def command(store: Path, catalogue: Path, epochs: int) -> list[str]:
    return [
        sys.executable, "-m", "jobs", "refresh", "--run", RUN, "--json", f"store={store}",
        f"catalogue.source={catalogue}", "catalogue.category=category", "model.kind=vae", "model.latent_dim=16",
        f"train.epochs={epochs}", "train.checkpoint_every_s=3", "images.size=32", "encode.actors=2",
        "encode.shard_rows=150", "index.kind=hnsw",
    ]  # fmt: skip


def refresh(store: Path, catalogue: Path, epochs: int) -> dict[str, object]:
    began = time.monotonic()
    done = subprocess.run(command(store, catalogue, epochs), capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return {**json.loads(done.stdout), "wall_s": time.monotonic() - began}


def kill_at(store: Path, catalogue: Path, epochs: int, after_s: float) -> bool:
    """Start a refresh, kill its tree after some seconds; return whether it was still alive then."""
    process = subprocess.Popen(
        command(store, catalogue, epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after_s)
    if process.poll() is not None:
        return False
    of_each(lambda member: member.kill(), process.pid)
    process.wait()
    return True


def digests(store: Path) -> dict[str, object]:
    """Return what must repeat: the published release's items, index, parts and model."""
    head = json.loads(sorted((store / "channels/stable").glob("*.json"))[-1].read_text())
    manifest = json.loads((store / "releases" / head["release_id"] / "manifest.json").read_text())
    return {
        "entries": len(list((store / "channels/stable").glob("*.json"))),
        "release": manifest["release_id"],
        "items": manifest["files"]["items"]["sha256"],
        "index": manifest["files"]["index"]["sha256"],
        "quarantine": manifest["files"]["quarantine"]["sha256"],
        "parts": [(part["name"], part["sha256"]) for part in manifest["parts"]],
        "model_id": manifest["model_id"],
    }


def phase_at(store: Path) -> str:
    """Return how far a killed run had come, from what it left behind."""
    for name in ("releases", "latents", "models", "pixels", "runs"):
        if (store / name).exists() and any((store / name).rglob("*.*")):
            return name
    return "nothing"


def series(
    base: Path, catalogue: Path, *, kills: int, epochs: int, prepared: Path | None, dice: random.Random
) -> list[dict]:
    def fresh(name: str) -> Path:
        store = base / name
        shutil.rmtree(store, ignore_errors=True)
        if prepared is not None:
            shutil.copytree(prepared, store)
        return store

    calm = fresh("undisturbed")
    undisturbed = refresh(calm, catalogue, epochs)
    wanted = digests(calm)
    whole_s = float(str(undisturbed["wall_s"]))
    print(f"undisturbed: {whole_s:.1f} s, {undisturbed.get('seconds')}", flush=True)
    rows = []
    for number in range(kills):
        store = fresh(f"kill-{number}")
        after_s = dice.uniform(0.05, 0.95) * whole_s
        alive = kill_at(store, catalogue, epochs, after_s)
        phase = phase_at(store)
        retried = refresh(store, catalogue, epochs)
        found = digests(store)
        differing = [name for name in wanted if wanted[name] != found[name]]
        row = {
            "killed_after_s": round(after_s, 1), "was_alive": alive, "reached": phase, "differs": differing,
            "retry_s": round(float(str(retried["wall_s"])), 1), "retry_seconds": retried.get("seconds"),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        rows.append(row)
        shutil.rmtree(store)
    return rows


def main() -> int:
    options = Options(
        __doc__, photos=3000, kills=(5, "kills with the bundle there"),
        fresh_kills=(5, "kills from nothing, training included"), epochs=3, seed=0, json=Path,
    ).parse_args()  # fmt: skip
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        base = Path(folder)
        render_catalogue(base / "catalogue", items=round(options.photos / 1.25), seed=1)
        catalogue = base / "catalogue" / "catalogue.csv"
        print("from nothing", flush=True)
        fresh = series(base, catalogue, kills=options.fresh_kills, epochs=options.epochs, prepared=None, dice=dice)
        prepared = base / "prepared"
        prepared.mkdir()
        shutil.copytree(base / "undisturbed" / "models", prepared / "models")
        shutil.copy(base / "undisturbed" / "store.json", prepared / "store.json")
        print("with the bundle on the store", flush=True)
        bundled = series(base, catalogue, kills=options.kills, epochs=options.epochs, prepared=prepared, dice=dice)
    result = {"from_nothing": fresh, "with_bundle": bundled}
    if options.json:
        write(options.json, {**made_on(""), "results": result})
    differing = [row for row in [*fresh, *bundled] if row["differs"]]
    print(f"{len(fresh) + len(bundled)} kills, {len(differing)} retries with other digests")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
