"""How many actors encode, and what each asks of the cluster: from the work, not from the machines that happen to be up.

A cluster that grows is asked for what the work needs at once: actors that wait for a machine are what its autoscaler
counts, while a pool that begins small and grows doubles once per machine's start. On one that stays as it is the actors
are fitted in.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from ..errors import ConfigError
from ..machine import usable_cores
from ..workers import Room
from .config import MOST_ASKED, PHOTOS_THERE, ActorRange, EncodeConfig

_log = logging.getLogger(__name__)

# What `auto` gives an actor of a machine that is up to do at least: about what its start costs (encoding so many small
# photos takes 2 to 3 s of a core).
_PHOTOS_HERE = 1_000
_DECODERS_EACH = 16  # decoders that `auto` asks for an encoding actor; Ray Data lets them wait where that is too many
# Below this share of a CPU for each of its threads an actor only takes time from the others.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Seats:
    """From how many actors to how many, and how many logical CPUs and GPUs each asks for."""

    least: int
    most: int
    cpus: float
    gpus: float = 0.0


def plan_seats(config: EncodeConfig, shards: int, photos: int, room: Room) -> Seats:
    """Return the actors that work on so many shards with so many photos.

    `encode.actors: N` is asked for where the cluster grows, a range is Ray Data's to move in. On a cluster that does
    not grow, at least one CPU (half of a single one) stays free for Ray Data's own tasks: with none it waits for ever
    and says nothing. Where N actors do not fit there, each asks for a part of a CPU, then there are fewer of them; of
    several machines, which others may join, the pool takes what comes. A cluster that reports no CPU yet starts its
    nodes on demand. Raises ConfigError when a cluster that does not grow has no GPU for an actor.
    """
    gpus = _gpus(config, room)
    least, most = _asked(config, photos, room, gpus)
    least, most = min(least, shards), min(most, shards)
    threads = float(config.threads)
    if room.grows or not room.cpus:
        return Seats(least, most, threads, gpus)
    if gpus:
        fit = room.places(gpus)
        if fit < 1:
            raise ConfigError(
                f"encode.gpus_per_actor is {gpus:g} and the cluster has {_told(room)}, nor an autoscaler that would "
                "start one; set it to 0 to encode on CPUs"
            )
        least, most = min(least, fit), most if room.machines > 1 else min(most, fit)
    free = max(room.cpus - 1.0, room.cpus / 2)
    seated = max(1, int(free // threads))
    if room.machines > 1:
        return Seats(min(least, seated), most, threads, gpus)
    if least <= free // threads:  # of one machine a pool that grew further would take the CPU that is to stay free
        return Seats(least, max(least, min(most, seated)), threads, gpus)
    seated = max(1, min(least, math.floor(free / (threads * _LEAST_SHARE))))
    share = max(0.01, min(math.floor(free / seated * 100) / 100, threads))
    _log.info(
        "encode.actors is %s of %d threads and the cluster has %g CPUs: %d actors of %g CPUs",
        config.actors, config.threads, room.cpus, seated, share,
    )  # fmt: skip
    return Seats(seated, seated, share, gpus)


def plan_decoders(config: EncodeConfig, seats: Seats, shards: int, photos: int, room: Room) -> Seats | None:
    """Return who fetches and decodes for the encoding actors of `seats`; None where these do it themselves."""
    if config.stages == "one" or (config.stages == "auto" and not seats.gpus):
        return None
    threads = float(config.threads)
    free = room.cpus - seats.least * seats.cpus
    if isinstance(config.decoders, ActorRange):
        least, most = config.decoders.min, config.decoders.max
    elif config.decoders != "auto":
        least = most = config.decoders
    elif room.grows or not room.cpus:
        least = most = min(MOST_ASKED, -(-photos // PHOTOS_THERE), _DECODERS_EACH * seats.least)
    else:
        least = max(1, min(int((free - 1) // threads), -(-photos // _PHOTOS_HERE)))
        most = least if room.machines == 1 else max(least, _DECODERS_EACH * seats.most)
    least, most = max(1, min(least, shards)), max(1, min(most, shards))
    if room.grows or not room.cpus or least * threads < free:
        return Seats(least, most, threads)
    # Fitted in: what the encoding actors leave, and of that a part stays free.
    least = max(1, min(least, int(max(free - 1, 1) // threads)))
    most = least if room.machines == 1 else most
    return Seats(least, most, threads if least * threads < free else max(0.01, round(free / (least + 1), 2)))


def _asked(config: EncodeConfig, photos: int, room: Room, gpus: float) -> tuple[int, int]:
    if isinstance(config.actors, ActorRange):
        return config.actors.min, config.actors.max
    if config.actors != "auto":
        return config.actors, config.actors
    here = min(_places(config, room, gpus), -(-photos // _PHOTOS_HERE))
    there = max(1, here, min(MOST_ASKED, -(-photos // PHOTOS_THERE)))
    if room.grows or not room.cpus:
        return there, there
    return max(1, here), there


def _places(config: EncodeConfig, room: Room, gpus: float) -> int:
    """Return how many actors keep the machines that are up busy."""
    if gpus:
        return room.places(gpus)
    if room.machines == 1:  # Ray may have been told of more CPUs than there are
        return int(min(room.cpus, usable_cores()) // config.threads)
    return int((room.cpus - 1) // config.threads)


def _gpus(config: EncodeConfig, room: Room) -> float:
    if config.gpus_per_actor != "auto":
        return config.gpus_per_actor
    found = 1.0 if any(room.gpus) else 0.0
    _log.info(
        "encode.gpus_per_actor is auto and the cluster has %s: %s",
        _told(room), "one an actor" if found else "on CPUs; write 1 to have machines with GPUs started and waited for",
    )  # fmt: skip
    return found


def _told(room: Room) -> str:
    return f"{sum(room.gpus):g} GPUs on {room.machines} machines"
