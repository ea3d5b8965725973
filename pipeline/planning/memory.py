"""What a night takes of memory, role by role, worked out before it starts; and refusing what its driver cannot hold.

The driver holds one row a photo (plan, items, the parent's items) and builds the index; what actors and trainers hold
does not grow with the catalogue. The factors are measured by tests/benchmarks/bench_scale.py, for rows of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ..encoding import PART_BYTES
from ..errors import ConfigError
from ..index import estimate_bytes, estimate_features_bytes, feature_width
from ..index.segments import TASK_BYTES, most_rows
from ..storage.room import memory_limit
from .settings import NightSettings

_BASE = 850 << 20  # of a process with torch, Ray, Arrow and FAISS loaded (647 MiB measured), and some room
_SLICES = 600 << 20  # of the slices and row groups that are at work at once, where there are enough photos for them
_SLICE_BYTES = 630  # of each photo in them
# Times the catalogue's rows with their places, which a driver holds at most at once, by the peaks that bench_scale.py
# printed of 0.3 to 3 million photos, whose rows took 316 bytes each.
_PLAN, _COLLECT, _BUILD = 2.6, 2.0, 2.3
_PLACES = 140  # bytes a photo that a plan and items have beside what the catalogue says: token, digest, parts and rows
_WORK = 64  # bytes of a training step for each byte of its photos
_PLACED = 100  # bytes a photo while it is looked which segments stay, where the index is made of some
_COPIES = 3  # of an index: as it is built, as a file, and opened as readers do
_GIB = 2**30


class Need(BaseModel):
    """What one process of a role takes, in bytes, about; why: of what, in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str
    bytes: int
    why: str

    def line(self) -> str:
        """Return it as a line for people."""
        return f"  {self.role}: {self.bytes / _GIB:.1f} GiB ({self.why})"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What memory depends on. row_bytes: of the catalogue's rows, all together; latent_dim: numbers a photo becomes;
    pixel_bytes: of one photo at the sizes that the model sees; trains: whether a model has to be made.
    code_features: of codes that the index compares, 0 where it compares none."""

    photos: int
    row_bytes: int
    latent_dim: int
    pixel_bytes: int
    trains: bool
    code_features: int = 0


def memory_needs(config: NightSettings, sizes: Sizes) -> tuple[Need, ...]:
    """Return what each role of a night takes, the driver first."""
    rows = sizes.row_bytes + sizes.photos * _PLACES
    width = sizes.code_features or feature_width(sizes.latent_dim, config.index)
    most = most_rows(width, config.index)
    at_once = min(sizes.photos, most)  # segments are built one after the other, or elsewhere
    segmented = sizes.photos > most
    index = estimate_bytes(at_once, width, config.index, segmented=segmented)
    beside = estimate_features_bytes(at_once, width, config.index, segmented=segmented)
    placed = _PLACED * sizes.photos if segmented else 0
    latents = 4 * sizes.photos * sizes.latent_dim * len(config.index.needs)
    base = _BASE + min(_SLICES, _SLICE_BYTES * sizes.photos)
    planning, collecting = base + int(_PLAN * rows), _BASE + int(_COLLECT * rows)
    building = base + int(_BUILD * rows) + 2 * latents + _COPIES * index + beside + placed
    photos = f"{sizes.photos:,} photos of {rows / max(1, sizes.photos):,.0f} bytes"
    said = [
        ("driver", max(planning, collecting, building), f"{photos}: it plans, collects, and builds the index"),
        ("driver while it plans", planning, "the catalogue, the last release, the plan"),
        ("driver while it collects", collecting, "the plan, and what became of each photo"),
        ("driver as index builder", building, f"{sizes.latent_dim} numbers a photo, index.kind {config.index.kind}"),
        ("each actor", _BASE + 3 * PART_BYTES, "one part of pixels, as it is made and written"),
    ]
    if placed:
        task = TASK_BYTES + index + beside
        said.append(("each builder of a segment", task, f"{at_once:,} photos; without Ray the driver is the only one"))
    if sizes.trains:
        batch = _WORK * config.train.batch_size * sizes.pixel_bytes
        said.append(("each trainer", _BASE + 3 * PART_BYTES + batch, "windows of pixels, and the work of one batch"))
    return tuple(Need(role=role, bytes=size, why=why) for role, size, why in said)


def check_driver(needs: Sequence[Need], *, limit: int | None = None) -> None:
    """Raise ConfigError where this process may not come to hold what the driver needs; limit: of it, in bytes."""
    may, need = memory_limit() if limit is None else limit, needs[0]
    if need.bytes > may:
        raise ConfigError(
            f"the driver needs about {need.bytes / _GIB:.1f} GiB of memory ({need.why}), and this process may hold "
            f"{may / _GIB:.1f} GiB by its machine or control group. Start it where there is more (on Kubernetes: the "
            "head's memory limit), or keep fewer columns by catalogue.attributes; nothing was computed"
        )


def memory_lines(needs: Sequence[Need]) -> Iterator[str]:
    """Yield lines on memory for people."""
    yield f"memory, about (this process may hold {memory_limit() / _GIB:.1f} GiB):"
    yield from (need.line() for need in needs)
