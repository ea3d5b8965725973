"""Import directions, file and function sizes, and where the packages are imported from (DESIGN section 3 and 7)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cluster
import jobs
import pipeline

ROOT = Path(__file__).resolve().parents[2]

# Lowest first; a room imports rooms of lower levels, and itself.
LEVELS: list[set[str]] = [
    {"errors"},
    {"forks", "keys", "schema"},
    {"storage"},
    {"parts"},
    {"release", "runs"},
    {"losses", "catalogue", "images", "report"},
    {"index"},
    {"models"},
    {"training", "encoding", "evaluation"},
    {"planning"},
    {"quality"},
    {"reader"},
    {"serving"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Rooms that may import a room of their own level.
SAME_LEVEL_ALLOWED = {("runs", "release")}

ONLY_IN: dict[str, set[str]] = {
    "ray": {"training", "encoding", "jobs", "cluster"},
    "torch": {"images/augment.py", "losses", "models", "training", "encoding", "evaluation", "quality"},
    "torchvision": {"images/augment.py", "losses", "models", "training", "encoding", "evaluation"},
    "faiss": {"index"},
    "s3fs": {"storage"},
    "fsspec": {"storage"},
    "botocore": {"storage"},
    "PIL": {"images", "report"},
    "jinja2": {"report"},
    "sklearn": {"evaluation"},
    "umap": {"evaluation"},
}
# Doctor reports which of these are installed and what they see; it runs nothing with them.
ALLOWED_ANYWHERE = {("jobs/doctor.py", "torch"), ("jobs/doctor.py", "faiss")}


def sources() -> list[Path]:
    return sorted(path for package in ("pipeline", "jobs", "cluster") for path in (ROOT / package).rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] != "pipeline":
        return parts[0]
    return Path(parts[1]).stem


def imported(path: Path) -> list[tuple[ast.stmt, str, int]]:
    """Return (statement, absolute dotted name, depth inside functions) of every import of a file."""
    found: list[tuple[ast.stmt, str, int]] = []
    package = path.relative_to(ROOT).parts[:-1]

    def visit(node: ast.AST, depth: int) -> None:
        for child in ast.iter_child_nodes(node):
            inner = depth + isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                found.extend((child, alias.name, depth) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = list(package[: len(package) - child.level + 1]) if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                found.extend((child, f"{module}.{alias.name}", depth) for alias in child.names)
            visit(child, inner)

    visit(ast.parse(path.read_text()), 0)
    return found


def test_packages_come_from_this_checkout() -> None:
    for package in (pipeline, jobs, cluster):
        assert Path(str(package.__file__)).resolve().parent.parent == ROOT


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    own = room_of(path)
    for statement, name, depth in imported(path):
        where = f"{path.relative_to(ROOT)}:{statement.lineno} imports {name}"
        top, *rest = name.split(".")
        if top in {"pipeline", "jobs", "cluster"}:
            assert depth == 0, f"{where} inside a function; our own modules are imported at the top"
            order = ["pipeline", "jobs", "cluster"]
            mine = path.relative_to(ROOT).parts[0]
            assert order.index(top) <= order.index(mine), f"{where}: imports point cluster -> jobs -> pipeline"
            if top == mine == "pipeline":
                assert isinstance(statement, ast.ImportFrom), f"{where}: inside pipeline, imports are relative"
                assert statement.level > 0, f"{where}: inside pipeline, imports are relative"
                room = rest[0] if rest else ""
                if own != "__init__" and room in LEVEL and room != own:
                    lower = LEVEL[room] < LEVEL[own] or (own, room) in SAME_LEVEL_ALLOWED
                    assert lower, f"{where}: {own} may not import {room}"
                if own == "reader":
                    assert room in {
                        "errors",
                        "forks",
                        "keys",
                        "schema",
                        "storage",
                        "parts",
                        "release",
                        "index",
                        "images",
                    }, where
                if own == "report":
                    assert room in {"errors", "report"}, where


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_parties_stay_in_their_rooms(path: Path) -> None:
    inside = str(path.relative_to(ROOT / "pipeline")) if path.is_relative_to(ROOT / "pipeline") else room_of(path)
    for statement, name, _ in imported(path):
        top = name.split(".")[0]
        if top not in ONLY_IN or (str(path.relative_to(ROOT)), top) in ALLOWED_ANYWHERE:
            continue
        allowed = any(inside == place or room_of(path) == place for place in ONLY_IN[top])
        assert allowed, f"{path.relative_to(ROOT)}:{statement.lineno} imports {name}, only {ONLY_IN[top]} may"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 440, f"{path.relative_to(ROOT)} has outgrown its room; split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 70, f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {length} lines"


def test_exceptions_are_defined_in_one_place() -> None:
    for path in sources():
        if path.relative_to(ROOT) == Path("pipeline/errors.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                bad = {base for base in bases if base.endswith(("Error", "Exception"))}
                assert not bad, f"{path.relative_to(ROOT)}:{node.lineno} defines an exception; move it to errors.py"
