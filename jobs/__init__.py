"""Entry points: each job is a config and a run(); no algorithms live here."""

import importlib
import sys
from pathlib import Path

# `python -m jobs` searches the current folder first: a user's own pipeline/ or cluster/ there is not the one we mean.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path.insert(0, _ROOT)
for _name in ("pipeline", "cluster"):
    importlib.import_module(_name)
sys.path.remove(_ROOT)
