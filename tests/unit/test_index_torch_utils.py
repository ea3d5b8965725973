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

mean, log_var = np.random.default_rng(0).normal(size=(2, 500, 8)).astype(np.float32)
latents = LatentArrays(mean=mean, log_var=log_var)
kinds = {"l2": ("flat", "hnsw", "hnsw_sq8", "flat_codes", "flat_eden4", "ivf_sq8", "ivf_pq"), "kl": ("ivf_pairs",)}
for metric in kinds:
    for kind in kinds[metric]:
        built = build_index(latents, IndexConfig(metric=metric, kind=kind, target_recall=0.5, queries=50))
        index = open_index(built.data, metric, features=built.features, parameters=built.parameters)
        rows, _ = index.search(latents.take([0, 7]), 1)
        exact, _ = nearest_exact(METRICS[metric], latents, latents.take([0, 7]), 1)
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
