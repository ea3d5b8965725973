"""Checkpoints on the store, the project's own: one counts only once its `complete.json`, written last, is there.

    <folder>/<step:09d>/rank-<r>.pt     random generators of every rank
    <folder>/<step:09d>/model.pt        model, optimiser, averaged weights, best epoch, by rank 0 (equal on all ranks)
    <folder>/<step:09d>/complete.json   what the training was asked to do, by rank 0

`step` counts finished optimiser steps. An older attempt that still writes here writes the same steps of the same
training, whole objects only, so any mixture of the two is a valid checkpoint. It deletes nothing that a newer attempt
may load: see `Checkpoints._prune`.
"""

from __future__ import annotations

import io
import json
import pickle
import re
from collections.abc import Callable
from typing import Any

import torch

from ..errors import ConfigError, IntegrityError, NotFound
from ..storage import Store
from .ranks import Ranks, random_state, restore_random, seed_rank

_FORMAT = 2
_WORLD = "world_size"


class Checkpoints:
    """Saves and finds the checkpoints of one training.

    folder: `runs/<run>/checkpoints/<12 hex of the train key>`. identity: what a checkpoint must have been made with to
    be continued, as flat JSON values. keep: complete checkpoints that remain. may_prune: asked on rank 0 before
    anything is deleted: is this still the live attempt of its run?
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        ranks: Ranks,
        *,
        identity: dict[str, Any],
        keep: int,
        may_prune: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._folder = folder.rstrip("/")
        self._ranks = ranks
        self._identity = identity
        self._keep = keep
        self._may_prune = may_prune

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `step` steps; every rank calls this. state: what rank 0 keeps, see `Loop`."""
        base = self._base(step)
        self._put(f"{base}/rank-{self._ranks.rank}.pt", random_state(self._ranks.device))
        if self._ranks.is_first:
            self._put(f"{base}/model.pt", state)
        self._ranks.wait_for_all()
        if self._ranks.is_first:
            note = {"format": _FORMAT, "step": step, "identity": {**self._identity, _WORLD: self._ranks.world_size}}
            self._store.put(f"{base}/complete.json", json.dumps(note, sort_keys=True).encode())
            self._prune()

    def newest(self) -> int | None:
        """Return the step of the newest complete checkpoint as rank 0 sees it, or None."""
        step = -1
        if self._ranks.is_first:
            step = max(self._complete(), default=-1)
        step = self._ranks.from_first(step)
        return None if step < 0 else step

    def load(self, step: int) -> dict[str, Any]:
        """Return what was kept after `step` steps and set this rank's random generators.

        Another number of ranks goes on too, with other noise and another order of photos from here on. Raises
        ConfigError when the checkpoint was made by another training, IntegrityError when it cannot be read.
        """
        base = self._base(step)
        world = self._checked_world(f"{base}/complete.json")
        state = self._get(f"{base}/model.pt")
        restore_random(self._get(f"{base}/rank-{self._ranks.rank % world}.pt"), self._ranks.device)
        if world != self._ranks.world_size:
            # Not where a generator stood: ranks beyond those that saved would draw what another draws.
            seed_rank(int(torch.randint(2**62, ()).item()), self._ranks.rank)
        return state

    def _checked_world(self, name: str) -> int:
        """Return how many ranks have saved a checkpoint."""
        try:
            note = json.loads(self._store.get(name))
            held = note["identity"] if note["format"] == _FORMAT else {"format": note["format"]}
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{name} is not a checkpoint note ({error}); delete its folder and run again"
            ) from error
        world = held.pop(_WORLD, 1)
        wanted = json.loads(json.dumps(self._identity))
        if held == wanted:
            return int(world)
        differing = [field for field in sorted({*held, *wanted}) if held.get(field) != wanted.get(field)]
        values = "; ".join(f"{field}: {held.get(field)!r} there, {wanted.get(field)!r} now" for field in differing)
        raise ConfigError(
            f"{name} is a checkpoint of another training ({values}); continue with the same settings, "
            f"use another --run, or delete {self._folder}"
        )

    def _complete(self) -> list[int]:
        pattern = re.compile(re.escape(self._folder) + r"/(\d{9,})/complete\.json")
        matches = (pattern.fullmatch(entry.name) for entry in self._store.list(f"{self._folder}/"))
        return sorted(int(match[1]) for match in matches if match)

    def _prune(self) -> None:
        """Delete what is older than the kept complete checkpoints, half-written ones among it.

        First it is listed, then the attempt is checked, then it is deleted. A newer attempt that the check does not
        see begins after the listing and loads the newest checkpoint that is complete then, which is never among those
        listed here. A newer one that the check sees deletes the old ones itself.
        """
        oldest = self._complete()[-self._keep :][0]
        doomed = [
            entry.name
            for entry in self._store.list(f"{self._folder}/")
            if (match := re.match(r"(\d{9,})/", entry.name[len(self._folder) + 1 :])) and int(match[1]) < oldest
        ]
        if doomed and not self._may_prune():
            return
        # `complete.json` goes first: from then on what is left of a checkpoint is ignored.
        for name in sorted(doomed, key=lambda name: not name.endswith("/complete.json")):
            self._store.delete(name)

    def _base(self, step: int) -> str:
        return f"{self._folder}/{step:09d}"

    def _put(self, name: str, state: dict[str, Any]) -> None:
        sink = io.BytesIO()
        torch.save(state, sink)
        self._store.put(name, sink.getbuffer())

    def _get(self, name: str) -> dict[str, Any]:
        try:
            # Tensors are loaded to the CPU: the optimiser and the generators move or keep them as they need.
            state = torch.load(io.BytesIO(self._store.get(name)), map_location="cpu", weights_only=True)
        except NotFound as error:
            raise IntegrityError(f"{name} is missing from a complete checkpoint; delete its folder") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise IntegrityError(f"{name} cannot be read ({error}); delete its folder and run again") from error
        if not isinstance(state, dict):
            raise IntegrityError(f"{name} holds a {type(state).__name__}, expected a dict; delete its folder")
        return state
