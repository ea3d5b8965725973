"""The READMEs: short where a newcomer begins, links and commands that are there, snippets that run, current tables."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from jobs.__main__ import COMMANDS
from jobs.command import Arguments
from jobs.config import Config, load_config
from jobs.parser import parse_arguments
from jobs.sources import preset_names
from pipeline.catalogue import CatalogueConfig
from pipeline.encoding import EncodeConfig
from pipeline.reader import open_release
from pipeline.storage import open_store
from pipeline.training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for folder in ("pipeline", "jobs", "cluster", "tests")
                              for path in (ROOT / folder).rglob("README.md"))]  # fmt: skip
SECTIONS: dict[str, type[BaseModel]] = {"catalogue": CatalogueConfig, "encode": EncodeConfig, "train": TrainConfig}


def blocks(page: str, language: str) -> list[str]:
    """Return a page's blocks of code of a language, "" for those that name none."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, named, code in found if named == language]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_a_newcomer_has_little_to_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_at_is_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} points at {target}"
        assert not anchor or anchor in anchors(path), f"{page} points at {target}, which has no such heading"
    for name in re.findall(r"`((?:pipeline|jobs|cluster|tests)/[\w./]+)`", text):
        assert (ROOT / name).exists(), f"{page} names {name}"
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page} names make {target}"


def spoken(page: str) -> list[str]:
    """Return the command lines of a page, of its blocks and of its sentences."""
    lines = [line for code in blocks(page, "") for line in code.splitlines()]
    lines += re.findall(r"`(codebooks [a-z][^`]*)`", (ROOT / page).read_text().replace("\n", " "))
    return [line.strip() for line in lines if re.match(r" *codebooks [a-z]", line)]


@pytest.mark.parametrize(("page", "line"), [(page, line) for page in PAGES for line in spoken(page)])
def test_a_command_that_a_page_names_is_understood(page: str, line: str) -> None:
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "..."]
    command = COMMANDS[words[0]]
    if len(words) == 1:
        return
    arguments = parse_arguments(words, command.help, command.options, import_module(command.module))
    assert arguments is not None
    assert arguments.config in {None, "FILE", *preset_names()} or arguments.config.endswith(".yaml")


@pytest.mark.parametrize("page", PAGES)
def test_a_config_that_a_page_shows_is_valid(page: str, tmp_path: Path) -> None:
    for code in blocks(page, "yaml"):
        given = yaml.safe_load(code)
        if not given.keys() & Config.model_fields.keys():  # a section alone
            (section,) = (name for name, field in SECTIONS.items() if given.keys() <= field.model_fields.keys())
            given = {section: given}
        shown = {"store": "s3://shop/visual", "model": {"kind": "vae"}, **given}
        shown["catalogue"] = {"source": "s3://shop/catalogue.parquet", **shown.get("catalogue", {})}
        (tmp_path / "shop.yaml").write_text(yaml.safe_dump(shown))
        assert load_config(Arguments(config=str(tmp_path / "shop.yaml")), {}).store.url == "s3://shop/visual"


@pytest.mark.parametrize("page", PAGES)
def test_python_that_a_page_shows_is_python(page: str) -> None:
    for code in blocks(page, "python"):
        compile(code, page, "exec")


def test_the_readmes_code_reads_a_release(maker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(str(tmp_path / "store"))
    maker.make_release(store, maker.some_photos(60))
    here = open_release(store.url, cache_dir=tmp_path / "cache")
    items = here.item_ids()
    (code,) = blocks("README.md", "python")
    for shown, real in {"s3://shop/visual": store.url, "sku-1": items[0], "sku-2": items[1]}.items():
        code = code.replace(f'"{shown}"', f'"{real}"')
    given = {"vectors": np.asarray(here.latents([items[0]])["mean"].to_pylist(), np.float32)}
    exec(compile(code, "README.md", "exec"), given)
    expected = here.similar(items[0], k=10, where={"category": "Shoes"})
    assert expected
    assert capsys.readouterr().out.splitlines() == [f"{n.item_id} {n.score} {n.attributes}" for n in expected]


@pytest.mark.slow
def test_the_readmes_code_compares_customers_by_codes(maker: Any, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    maker.make_vq_release(store)
    release = open_release(store.url, cache_dir=tmp_path / "cache")
    item_ids = release.item_ids()[:30]
    photos = release.latents(item_ids).num_rows
    code = next(code for code in blocks("pipeline/models/README.md", "python") if "fitted_words" in code)
    grid = SimpleNamespace(release=release, item_ids=item_ids, buyers=[f"customer-{n % 3}" for n in range(photos)])
    given = vars(grid)
    exec(compile(code, "pipeline/models/README.md", "exec"), given)
    assert given["cosines"].shape == (3, photos)
    assert np.abs(np.asarray(given["cosines"])).max() <= 1 + 1e-6
    own = [given["cosines"][number % 3, number] for number in range(photos)]
    assert np.mean(own) > np.asarray(given["cosines"]).mean()  # a customer is nearer to what he bought


def checked_tables(root: Path) -> subprocess.CompletedProcess[str]:
    """Return what tables.py says of the pages of a checkout."""
    program = root / "tests" / "benchmarks" / "tables.py"
    return subprocess.run([sys.executable, program], cwd=root, capture_output=True, text=True, timeout=120)


def test_the_tables_are_those_of_the_results(tmp_path: Path) -> None:
    done = checked_tables(ROOT)
    assert (done.returncode, done.stdout) == (0, "all current\n"), done.stdout + done.stderr
    # The check sees a digit, and a table that was taken out.
    shutil.copytree(ROOT / "tests" / "benchmarks", tmp_path / "tests" / "benchmarks")
    (tmp_path / "pipeline" / "index").mkdir(parents=True)
    shutil.copy(ROOT / "pipeline" / "index" / "README.md", tmp_path / "pipeline" / "index")
    page, other = tmp_path / "README.md", tmp_path / "tests" / "benchmarks" / "README.md"
    page.write_text((ROOT / "README.md").read_text().replace("| 90.4 ± 0.1 |", "| 90.5 ± 0.1 |"))
    other.write_text(other.read_text().replace("<!-- table: kill -->", ""))
    done = checked_tables(tmp_path)
    assert done.returncode == 1
    assert "README.md: table 'choices' is not that of the results" in done.stdout
    assert "table 'kill' stands on no page" in done.stdout
