"""Sixteen processes publish, promote, roll back, pin, lease, read and expire at once while a share of calls fails.

Four publishers (whole nights on two channels), two each that promote, roll back, pin and expire, four readers, for five
minutes on a disk and then on SeaweedFS. Half of what fails never happens; of the other half the answer is lost. On the
disk these are the process's own file operations, on S3 the requests, at a proxy. At the end the log, the authors of its
entries and every release that is left are looked through without faults. Exit 1 where anything is wrong.

    python tests/benchmarks/bench_turmoil.py --json results/turmoil.json [--seconds 300] [--fail 0.05] [--only disk,s3]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beside import tests_module
from faulty_store import Rule, behind_proxy, sign_in
from options import NEEDED, Given, Options, names_of
from record import add, made_on
from turmoil_actors import CHANNELS, ROLES, Diary, Stage, act, publisher_once, store_of

from pipeline.errors import CodebooksError
from pipeline.release import read_log, verify_release
from pipeline.release.channel import log_numbers
from pipeline.release.roots import MANIFEST
from pipeline.storage import Store


def stage_of(url: str, work: Path, asked: Given, until: float) -> Stage:
    maker, expiring = tests_module("release_maker"), tests_module("expiring")
    return Stage(url, work, until, asked.grace, asked.fail, maker, expiring)


def troupe(stage: Stage) -> int:
    """Become all actors, which share what was imported; return how many ended badly."""
    children = []
    for role, many in ROLES.items():
        for at in range(many):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    act(f"{role}-{at}", stage)
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
    return sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


@contextmanager
def on_disk(work: Path) -> Iterator[tuple[str, dict[str, str], Any]]:
    yield str(work / "store"), {}, None


@contextmanager
def on_s3(work: Path) -> Iterator[tuple[str, dict[str, str], Any]]:
    with behind_proxy(work / "weed", "turmoil") as (server, proxy):
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{server.port}"
        yield f"{server.url}/store", {"AWS_ENDPOINT_URL": proxy.endpoint}, proxy


PLACES = {"disk": on_disk, "s3": on_s3}


def play(where: str, asked: Given) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="turmoil-") as folder, PLACES[where](Path(folder)) as place:
        url, environment, proxy = place
        work = Path(folder) / "notes"
        work.mkdir()
        calm = stage_of(url, work, asked, 0.0)
        store = store_of(calm, Diary(work / "opening.jsonl"))
        for number, channel in enumerate(CHANNELS):
            publisher_once(calm, store, f"first-{number}", channel)
        if proxy is not None:
            proxy.rules = [
                Rule(".*", "", share=asked.fail / 2, status=500, code="InternalError", each=True),
                Rule(".*", "", share=asked.fail / 2 / (1 - asked.fail / 2), each=True, lost=True),
            ]
        words = [sys.executable, __file__, "--troupe", url, "--work", str(work), "--grace", str(asked.grace)]
        words += ["--fail", str(asked.fail), "--seconds", str(asked.seconds), "--json", "-"]
        began = time.monotonic()
        ended = subprocess.run(words, env={**os.environ, **environment}, check=False).returncode
        found = {"seconds": round(time.monotonic() - began), "processes": sum(ROLES.values()), "ended_badly": ended}
        notes = [
            {"actor": path.stem, **json.loads(line)}
            for path in sorted(work.glob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        return {**found, **told(notes, proxy), **looked_through(store, notes)}


def told(notes: list[dict[str, Any]], proxy: Any) -> dict[str, Any]:
    """Return what the actors noted, counted."""
    done, refused = Counter[str](), defaultdict[str, Counter[str]](Counter)
    sums = Counter[str]()
    for note in notes:
        if note["what"] == "done":
            done[note["role"]] += 1
        elif note["what"] == "refused":
            refused[note["role"]][note["error"]] += 1
        elif note["what"] == "expired":
            sums.update(sweeps=int(note["swept"] > 0), swept_files=note["swept"], marked_files=note["marked"])
        elif note["what"] == "counts" and proxy is None:
            sums.update(calls=note["calls"], calls_failed=note["failed"], answers_lost=note["lost"])
        elif note["what"] in ("view", "held whole", "held broken", "retried", "undeleted", "longer grace"):
            sums.update({note["what"].replace(" ", "_"): 1, "moved": int(note.get("moved", False))})
    if proxy is not None:
        sums.update(calls=proxy.counts.total(), calls_failed=proxy.counts["refused"], answers_lost=proxy.counts["lost"])
    violations = [note for note in notes if note["what"] == "VIOLATION"]
    return {"done": dict(done), "refused": {role: dict(own) for role, own in refused.items()}, **dict(sums),
            "violations": len(violations), "first_violations": violations[:10]}  # fmt: skip


def looked_through(store: Store, notes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is wrong with the logs and the releases that are left."""
    won = Counter((note["channel"], note["number"]) for note in notes if note["what"] == "entry" and note["won"])
    entries, gaps, unlike, unwritten = 0, 0, 0, 0
    for channel in CHANNELS:
        log = read_log(store, channel)
        entries += len(log)
        numbers = log_numbers(store, channel)
        gaps += numbers != list(range(1, len(numbers) + 1))
        stored = {entry.number: entry.model_dump(mode="json") for entry in log}
        unwritten += sum((channel, number) not in won for number in stored)
        unlike += sum(
            stored.get(note["entry"]["number"]) != note["entry"]
            for note in notes
            if note["what"] == "told" and note["channel"] == channel
        )
    names = [entry.name for entry in store.list("releases/")]
    releases = [match[1] for name in names if (match := MANIFEST.fullmatch(name))]
    broken = []
    for release in releases:
        try:
            broken += verify_release(store, release).problems
        except CodebooksError as error:
            broken.append(str(error))
    return {"entries": entries, "gaps": gaps, "numbers_with_two_authors": sum(count > 1 for count in won.values()),
            "numbers_whose_author_was_never_told": unwritten, "answers_unlike_the_log": unlike,
            "releases_left": len(releases), "problems_left": len(broken), "first_problems": broken[:5]}  # fmt: skip


def wrong(found: dict[str, Any]) -> list[str]:
    names = ("violations", "gaps", "numbers_with_two_authors", "answers_unlike_the_log", "problems_left", "ended_badly")
    return [name for name in names if found[name]]


def main() -> int:
    parser = Options(
        __doc__, json=NEEDED, seconds=300.0, grace=(30.0, "seconds, where a store has days"), fail=0.05,
        only=",".join(PLACES),
    )  # fmt: skip
    asked = parser.hidden(troupe=str, work=Path).parse_args()
    sign_in()
    if asked.troupe:
        return troupe(stage_of(asked.troupe, asked.work, asked, time.time() + asked.seconds))
    failed = []
    for where in names_of(asked.only, PLACES, "places"):
        found = {**play(where, asked), **made_on(""), "share_failing": asked.fail}
        add(asked.json, found, where)
        print(where, json.dumps(found, indent=1), flush=True)
        failed += [f"{where}: {name}" for name in wrong(found)]
    print("wrong: " + ", ".join(failed) if failed else "nothing wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
