"""The wheel, in an environment of its own with the base install and `cpu` only: a release opens and answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.reader import open_release
from pipeline.storage import open_store

ROOT = Path(__file__).resolve().parents[2]

READ = """
import importlib.util, json, sys
absent = ["ray", "torch", "torchvision", "PIL", "onnx", "onnxruntime", "sklearn", "pandas", "psutil", "jinja2"]
found = [name for name in absent if importlib.util.find_spec(name)]
assert not found, f"the base install brought {found}"
import pipeline
assert "site-packages" in pipeline.__file__, pipeline.__file__
from pipeline.evaluation.words import fitted_words
from pipeline.reader import open_release
release = open_release(sys.argv[1], cache_dir=sys.argv[2])
near = release.similar("sku-003", k=5, where={"category": ["Shoes", "Hats", "Bags"]})
many = release.similar_to_many(["sku-003", "sku-004"], k=3)
rows = release.latents(["sku-003"]).num_rows
print(json.dumps([[n.item_id, n.score, n.attributes] for n in [*near, *many]] + [rows]))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build from a copy: setuptools writes beside the sources."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in ("pipeline", "jobs", "cluster"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    place = ["--wheel", "--no-isolation", "--outdir", folder / "dist"]
    run(sys.executable, "-m", "build", *place, source, cwd=folder)
    (wheel,) = (folder / "dist").glob("visual_codebooks-*.whl")
    return wheel


def required(requirements: Iterable[str], extras: frozenset[str] = frozenset()) -> set[str]:
    """Return the distributions that requirements name, and those that these require in turn."""
    found: set[str] = set()
    for text in requirements:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in (extras or {""})]
        if requirement.marker and not any(requirement.marker.evaluate(each) for each in environments):
            continue
        name = canonicalize_name(requirement.name)
        if name not in found:
            found.add(name)
            found |= required(distribution(name).requires or [], frozenset(requirement.extras))
    return found


def install(wheel: Path, folder: Path, extra: str) -> Path:
    """Make an environment of the wheel, of what it requires with an extra, and of nothing else; return its Python.

    Every distribution is taken from this environment by links: what `pip install` would bring, without an index.
    """
    venv.create(folder)
    [packages] = (folder / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        [metadata] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        wants = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    for name in required(wants, frozenset({extra})):
        files = distribution(name).files or []
        tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
        for top in tops:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    return folder / "bin" / "python"


@pytest.mark.slow
def test_a_bare_environment_opens_a_release(tmp_path: Path, maker: Any) -> None:
    store = open_store(str(tmp_path / "store"))
    maker.make_release(store, maker.some_photos(60))
    python = install(build_wheel(tmp_path), tmp_path / "bare", "cpu")
    # -W error: what a team's own strict tests would meet.
    answer = json.loads(run(python, "-I", "-W", "error", "-c", READ, store.url, tmp_path / "cache", cwd=tmp_path))
    release = open_release(store.url, cache_dir=tmp_path / "cache-here")
    near = release.similar("sku-003", k=5, where={"category": ["Shoes", "Hats", "Bags"]})
    many = release.similar_to_many(["sku-003", "sku-004"], k=3)
    here = [[found.item_id, found.score, found.attributes] for found in [*near, *many]]
    assert answer == [*json.loads(json.dumps(here)), release.latents(["sku-003"]).num_rows]


@pytest.mark.slow
def test_without_faiss_the_reader_says_which_extra_to_install(tmp_path: Path, maker: Any) -> None:
    store = open_store(str(tmp_path / "store"))
    maker.make_release(store, maker.some_photos(5))
    # This environment, with FAISS and its metadata out of sight.
    code = (
        "import importlib.metadata, sys\n"
        "real = importlib.metadata.distributions\n"
        "importlib.metadata.distributions = lambda: [d for d in real() if 'faiss' not in str(d.metadata['Name'])]\n"
        "sys.modules['faiss'] = None\n"
        "from pipeline.reader import open_release\n"
        "open_release(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", code, store.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ConfigError: FAISS is not installed" in done.stderr
    assert "visual-codebooks[cpu]" in done.stderr
