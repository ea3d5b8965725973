"""Curves of a report: its measures over the channel's last releases, and how the training of its model went."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence

from ...errors import NotFound
from ...release.history import History, history
from ...report.trends import Curve, Point
from ...storage import Store
from ..trends import Column, shown, trends

_RELEASES = 30
_COUNTED = ("items", "photos", "refused", "added", "changed", "removed")
_ENDS = ("_low", "_high")
_POINTS = 200  # of a training curve: more than a plot of its width can show


def channel_history(store: Store, channel: str | None) -> History | None:
    """Return the newest entries of a channel, None where there is none."""
    found = None if channel is None else history(store, channel, last=_RELEASES)
    return found if found is not None and found.told else None


def measure_curves(
    found: History | None, release: str, counts: Mapping[str, int], measures: Mapping[str, float]
) -> list[Curve]:
    """Return a curve for each count and measure of this release over the channel's last 30, and this one at the end.

    Ends of intervals, which manifests list as measures of their own, have none.
    """
    columns: Sequence[Column] = () if found is None else trends(found).columns
    before = [column for column in columns if not column.expired]
    last = () if any(column.release == release for column in before) else ((counts, measures),)
    curves = []
    names = [("count", name) for name in _COUNTED if name in counts]
    names += [("measure", name) for name in measures if not _is_end(name, measures)]
    for kind, name in names:
        points = [
            Point(f"{one.number}, {one.created:%Y-%m-%d}", value, shown(value), one.bundle_changed)
            for one in before
            for value in (one.value(kind, name),)
        ]
        for own in last:
            value = (own[0] if kind == "count" else own[1]).get(name)
            points.append(Point("this release", value, shown(value)))
        if sum(point.value is not None for point in points) > 1:
            curves.append(Curve(name if kind == "measure" else f"{name} (count)", points))
    return curves


def _is_end(name: str, measures: Mapping[str, float]) -> bool:
    return any(name.endswith(end) and name.removesuffix(end) in measures for end in _ENDS)


def training_run(found: History | None, model_id: str, run: str) -> str:
    """Return the run that a model was trained in as far as a channel's log tells: the oldest with a release of it."""
    told = () if found is None else found.told
    runs = (one.manifest.run for one in told if one.manifest is not None and one.manifest.model_id == model_id)
    return next(runs, run)


def training_curves(store: Store, run: str) -> list[Curve]:
    """Return the scalars that a run's training wrote for TensorBoard; none once its event files have expired.

    What a later attempt did again takes the place of what it continued from.
    """
    values: dict[str, dict[int, float]] = {}
    folder = f"runs/{run}/tensorboard/"
    for entry in sorted(store.list(folder), key=lambda entry: entry.name):
        try:
            data = store.get(entry.name)
        except NotFound:
            continue
        for step, name, value in _scalars(data):
            if name is None:  # an attempt that continues a checkpoint begins here
                values = {each: {at: held for at, held in own.items() if at < step} for each, own in values.items()}
            else:
                values.setdefault(name, {})[step] = value
    curves = []
    for name, found in values.items():
        steps = sorted(found)
        kept = steps[:: max(1, -(-len(steps) // _POINTS))]
        if steps and kept[-1] != steps[-1]:
            kept.append(steps[-1])
        if len(kept) > 1:
            curves.append(Curve(name, [Point(f"step {step:,}", found[step], f"{found[step]:.4g}") for step in kept]))
    return curves


def _scalars(data: bytes) -> Iterator[tuple[int, str | None, float]]:
    """Yield (step, name, value) of an event file, name None where a continued attempt begins; a cut end is left out.

    A file is records of a length (uint64, little-endian), its checksum, an `Event` message, and its checksum.
    """
    # Imported here: TensorBoard's messages alone, which take a tenth of a second.
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    source = io.BytesIO(data)
    while len(head := source.read(12)) == 12:
        (length,) = struct.unpack("<Q", head[:8])
        message = source.read(length + 4)
        if len(message) < length + 4:
            return
        event = Event.FromString(message[:length])
        if event.session_log.status == SessionLog.START:
            yield event.step, None, 0.0
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, value.simple_value
