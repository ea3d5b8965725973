"""Import directions, file and function sizes, and where the packages are imported from (DESIGN section 3 and 7)."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import cluster
import jobs
import pipeline

ROOT = Path(__file__).resolve().parents[2]

# Lowest first; a room imports rooms of lower levels, and itself.
LEVELS: list[set[str]] = [
    {"errors", "holders"},
    {
        "boards",
        "column_types",
        "damaged",
        "events",
        "findings",
        "forks",
        "keys",
        "ordering",
        "refusals",
        "schema",
        "stopping",
    },
    {"storage"},
    {"nodes"},
    {"ends", "parts", "process", "settings", "watch", "workers"},
    {"mapping", "release", "runs"},
    {"losses", "catalogue", "images", "report"},
    {"index"},
    {"tables"},
    {"machine", "models"},
    {"training", "encoding", "evaluation", "recommending"},
    {"monitoring", "planning", "progress"},
    {"quality"},
    {"reader"},
    {"async_reader", "serving"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Rooms that may import a room of their own level.
SAME_LEVEL_ALLOWED = {("runs", "release")}

# DESIGN sections 3 and 7.
FILE_LINES, FUNCTION_LINES, ARGUMENTS, JOBS_LINES = 400, 60, 8, 3000

ONLY_IN: dict[str, set[str]] = {
    "ray": {"workers", "training", "encoding", "jobs", "cluster"},
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
    "prometheus_client": {"monitoring"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "cryptography": {"release/signing_keys.py"},
}


def sources() -> list[Path]:
    return sorted(path for package in ("pipeline", "jobs", "cluster") for path in (ROOT / package).rglob("*.py"))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] != "pipeline":
        return parts[0]
    return Path(parts[1]).stem


@functools.cache
def imported(path: Path, root: Path = ROOT) -> list[tuple[ast.stmt, str, int]]:
    """Return (statement, absolute dotted name, depth inside functions) of every import of a file, hints' too."""
    found: list[tuple[ast.stmt, str, int]] = []
    package = path.relative_to(root).parts[:-1]

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

    visit(tree_of(path), 0)
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return for every file, as a dotted name, the files of ours that it imports.

    An import for type hints counts as any other. `from . import x` means the file x where there is one, else a name of
    the package's own file. Whatever is imported from another package runs that package's `__init__` as well.
    """
    files: dict[str, Path] = {}
    for package in ("pipeline", "jobs", "cluster"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for own, path in files.items():
        graph[own] = set()
        for _, name, _ in imported(path, root):
            module = name.removesuffix(".*")
            while module and module not in files:
                module = module.rpartition(".")[0]
            ancestors = [".".join(module.split(".")[:count]) for count in range(1, module.count(".") + 1)]
            graph[own] |= {module, *(a for a in ancestors if not f"{own}.".startswith(f"{a}."))} & files.keys() - {own}
    return graph


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the files that import one another, directly or by way of others: components of more than one file."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set[str](), [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[start] = seen
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]})


def test_packages_come_from_this_checkout() -> None:
    for package in (pipeline, jobs, cluster):
        assert Path(str(package.__file__)).resolve().parent.parent == ROOT


def test_imports_point_downwards() -> None:
    for path in sources():
        check_directions(path)


def check_directions(path: Path) -> None:
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
                        "column_types",
                        "storage",
                        "parts",
                        "release",
                        "index",
                        "images",
                    }, where
                if own == "report":
                    assert room in {"errors", "report"}, where


def test_no_files_import_one_another_in_a_circle() -> None:
    assert circles(import_graph(ROOT)) == []


LEAF, INIT = "VALUE = 1\n", "from .a import first\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from .b import second\n", "b": LEAF}, []),
        ({"a": "from . import b\n", "b": LEAF}, []),
        ({"a": "from .b import second\n", "b": "from .a import first\n"}, [("pipeline.x.a", "pipeline.x.b")]),
        ({"a": "from . import b\n", "b": "from . import a\n"}, [("pipeline.x.a", "pipeline.x.b")]),
        (
            {
                "a": "from .b import second\n",
                "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .c import Third\n",
                "c": "def late():\n    from .a import first\n",
            },
            [("pipeline.x.a", "pipeline.x.b", "pipeline.x.c")],
        ),
        # A name that the package's own file brings from elsewhere.
        ({"__init__": INIT, "a": "from . import VALUE\n"}, [("pipeline.x", "pipeline.x.a")]),
        ({"__init__": INIT, "a": "from .. import x\n"}, [("pipeline.x", "pipeline.x.a")]),
        ({"__init__": INIT, "a": "import pipeline.x\n"}, [("pipeline.x", "pipeline.x.a")]),
        ({"__init__": INIT, "a": "from .b import *\n", "b": LEAF}, []),
        # Another package runs whole, whatever is taken from it.
        ({"a": "from ..y.leaf import VALUE\n"}, [("pipeline.x.a", "pipeline.y", "pipeline.y.up")]),
    ],
)
def test_the_check_for_circles_sees_them(
    tmp_path: Path, files: dict[str, str], expected: list[tuple[str, ...]]
) -> None:
    other = {"__init__": "from .up import second\n", "leaf": LEAF, "up": "from ..x.a import first\n"}
    for package, texts in (("x", {"__init__": "", **files}), ("y", other)):
        (tmp_path / "pipeline" / package).mkdir(parents=True)
        for name, text in texts.items():
            (tmp_path / "pipeline" / package / f"{name}.py").write_text(text)
    assert circles(import_graph(tmp_path)) == expected


def test_third_parties_stay_in_their_rooms() -> None:
    for path in sources():
        check_third_parties(path)


def check_third_parties(path: Path) -> None:
    inside = str(path.relative_to(ROOT / "pipeline")) if path.is_relative_to(ROOT / "pipeline") else room_of(path)
    for statement, name, _ in imported(path):
        top = name.split(".")[0]
        if top not in ONLY_IN:
            continue
        allowed = any(inside == place or room_of(path) == place for place in ONLY_IN[top])
        assert allowed, f"{path.relative_to(ROOT)}:{statement.lineno} imports {name}, only {ONLY_IN[top]} may"


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many arguments a function takes, its own object or class aside; `*rest` and `**rest` are one each."""
    named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    collecting = [argument for argument in (node.args.vararg, node.args.kwarg) if argument is not None]
    return len([argument for argument in named if argument.arg not in {"self", "cls"}]) + len(collecting)


def test_arguments_are_counted_of_every_sort() -> None:
    (method,) = ast.parse("async def f(self, a, /, b, *rest, c=1, **more): ...").body
    assert isinstance(method, ast.AsyncFunctionDef)
    assert arguments_of(method) == 5


def too_large(text: str, tree: ast.Module | None = None) -> list[str]:
    """Return what of a file is larger than DESIGN section 7 lets it be: itself, its functions, their arguments."""
    found = ["the file has outgrown its room; split it"] if text.count("\n") > FILE_LINES else []
    for node in ast.walk(tree or ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"line {node.lineno}: {node.name} has {length} lines")
            count = arguments_of(node)
            if count > ARGUMENTS:
                found.append(f"line {node.lineno}: {node.name} takes {count} arguments; make one dataclass of some")
    return found


def test_sizes() -> None:
    found = {str(path.relative_to(ROOT)): too_large(path.read_text(), tree_of(path)) for path in sources()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_what_is_too_large_is_seen() -> None:
    body = "".join(f"    {number}\n" for number in range(FUNCTION_LINES - 1))
    names = ", ".join(f"a{number}" for number in range(ARGUMENTS))
    assert too_large(f"def f({names}):\n{body}" + "# more\n" * (FILE_LINES - FUNCTION_LINES)) == []
    longer = f"class A:\n  async def f(self, {names}, *rest):\n{body}    0\n" + "# more\n" * FILE_LINES
    assert [words.split(": ")[-1].split()[0] for words in too_large(longer)] == ["the", "f", "f"]


def test_jobs_only_compose() -> None:
    lines = {path.name: path.read_text().count("\n") for path in sources() if room_of(path) == "jobs"}
    longest = sorted(lines, key=lambda name: -lines[name])[:5]
    assert sum(lines.values()) <= JOBS_LINES, f"jobs/ holds more than entry points; move down parts of {longest}"


def test_exceptions_are_defined_in_one_place() -> None:
    for path in sources():
        if path.relative_to(ROOT) == Path("pipeline/errors.py"):
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                bad = {base for base in bases if base.endswith(("Error", "Exception"))}
                assert not bad, f"{path.relative_to(ROOT)}:{node.lineno} defines an exception; move it to errors.py"
