"""Searching in a process where some library has patched FAISS for torch tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import faiss.contrib.torch_utils  # as pytorch_metric_learning does; it replaces faiss.Index.search
import numpy as np
from pipeline.index import METRICS, IndexConfig, LatentArrays, build_index, nearest_exact, open_index

latents = LatentArrays(mean=np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32))
for kind in ("flat", "hnsw"):
    config = IndexConfig(metric="l2", kind=kind)
    rows, _ = open_index(build_index(latents, config).data, "l2").search(latents.take([0, 7]), 3)
    exact, _ = nearest_exact(METRICS["l2"], latents, latents.take([0, 7]), 3)
    assert rows.tolist() == exact.tolist(), (kind, rows, exact)
print("fine")
"""


@pytest.mark.slow
def test_a_patched_faiss_searches_as_before() -> None:
    found = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **found}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "fine", done.stderr
