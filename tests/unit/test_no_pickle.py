"""Nothing that is read from a store runs: no pickles, no evaluated text, wherever a release, bundle or part is read."""

from __future__ import annotations

import ast
import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from pipeline.errors import IntegrityError
from pipeline.index.features_file import read_features
from pipeline.reader import open_release
from pipeline.storage import open_store

ROOT = Path(__file__).resolve().parents[2]
# Between our own processes of one run, never from a store: answers and errors of actors and of a child, and what tasks
# share, of which only arrays lie on a store, as plain numbers and texts.
OWN_PROCESSES = {"encoding/driver.py", "encoding/trial.py", "mapping.py", "training/driver.py"}
RUNS_CODE = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADS = {"load", "loads", "Unpickler", "read_pickle", "open"}


def loading_calls(text: str) -> list[str]:
    """Return the calls of a source that would run what they read: `pickle.loads`, `np.load` without a refusal, ..."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        module, _, function = name.rpartition(".")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            (module in RUNS_CODE and function in LOADS)
            or name in {"eval", "exec", "compile", "read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
            or function == "read_pickle"
            or (module in {"np", "numpy"} and function == "load" and given.get("allow_pickle") != "False")
            or (module in {"torch", "torch.jit"} and function == "load" and given.get("weights_only") != "True")
        ):
            found.append(name)
    return found


@pytest.mark.slow
def test_only_our_own_processes_unpickle() -> None:
    found = {
        str(path.relative_to(ROOT / "pipeline")): calls
        for path in sorted((ROOT / "pipeline").rglob("*.py"))
        if (calls := loading_calls(path.read_text()))
    }
    assert found.keys() <= OWN_PROCESSES, found
    assert {call for calls in found.values() for call in calls} <= {"pickle.loads"}, found
    for path in [*(ROOT / "jobs").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]:
        assert loading_calls(path.read_text()) == [], path


@pytest.mark.parametrize(
    "call",
    [
        "pickle.loads(data)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "torch.load(file, map_location='cpu')",
        "joblib.load(file)",
        "pd.read_pickle(file)",
        "yaml.load(text, Loader=yaml.Loader)",
        "pickle.Unpickler(file).load()",
        "eval(text)",
    ],
)
def test_the_scan_sees_what_it_looks_for(call: str) -> None:
    assert loading_calls(f"value = {call}\n")
    assert loading_calls("safetensors.torch.load(data); np.load(f, allow_pickle=False); yaml.safe_load(t)\n") == []


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise AssertionError('a stored byte was run')",)


def test_a_release_opens_and_answers_where_nothing_can_unpickle(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))
    maker.write_encoder(store, maker.MODEL, maker.DIM)
    maker.make_release(store, maker.some_photos(8), **maker.listed(store, maker.MODEL))

    def refused(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    release = open_release(store.url, cache_dir=tmp_path / "cache")
    assert release.similar("sku-001", 3)
    assert release.similar_photo(maker.picture(), 3)
    assert release.latents(["sku-001"]).num_rows


def test_an_array_file_that_holds_a_pickle_is_refused_unread() -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([Evil()], object), allow_pickle=True)
    with pytest.raises(IntegrityError):
        read_features(sink.getvalue())
