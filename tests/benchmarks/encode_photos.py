"""The photos of bench_encode.py: JPEG files, and a source that answers late."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.encoding import Encoder
from pipeline.storage import Body, Files


class SlowFiles(Files):
    """Files of which each comes some seconds later, as from an object store."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "delay": self.delay}

    def fetch(self, uri: str, **wanted: Any) -> Body:
        time.sleep(self.delay)
        return super().fetch(uri, **wanted)


class SlowEncoding(Files):
    """Files that make the encoder of each process they are sent to slow, as a GPU that is busy: it sleeps a batch long.

    Every process writes down when its encoder was at work, in a file of its own in `folder`.
    """

    def __init__(self, batch_s: float, folder: Path) -> None:
        super().__init__()
        self.batch_s, self.folder = batch_s, folder

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "batch_s": self.batch_s, "folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        real = Encoder._encoded
        if getattr(real, "slow", False):
            return

        def slow(encoder: Encoder, *given: Any) -> Any:
            began = time.time()
            time.sleep(self.batch_s)
            found = real(encoder, *given)
            with (self.folder / f"busy-{os.getpid()}").open("a") as file:
                file.write(f"{began} {time.time()}\n")
            return found

        slow.slow = True  # type: ignore[attr-defined]
        Encoder._encoded = slow  # type: ignore[method-assign]


def busy_share(folder: Path) -> float:
    """Return which share of the time between its first and its last batch the one encoder was at work."""
    (path,) = folder.glob("busy-*")
    spans = np.array([[float(word) for word in line.split()] for line in path.read_text().splitlines()])
    path.unlink()
    return float((spans[:, 1] - spans[:, 0]).sum() / (spans[-1, 1] - spans[0, 0]))


def make_photos(folder: Path, source: Path | None, count: int) -> list[str]:
    """Return the names of `count` JPEG files, links to 500 of a folder's or to 500 that are made."""
    if source is None:
        generator = np.random.default_rng(0)
        originals = []
        for n in range(min(count, 500)):
            coarse = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((400, 533), Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = smooth + generator.normal(0, 6, smooth.shape).astype(np.int16)
            sink = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=80)
            originals.append(folder / f"original-{n}.jpg")
            originals[-1].write_bytes(sink.getvalue())
    else:
        found = (path for path in source.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
        originals = []
        for n, path in enumerate(sorted(found)[: min(count, 500)]):
            originals.append(folder / f"original-{n}.jpg")  # copied: the source may lie on another disk
            originals[-1].write_bytes(path.read_bytes())
    names = [folder / f"{n:07d}.jpg" for n in range(count)]
    for n, name in enumerate(names):
        os.link(originals[n % len(originals)], name)
    return [str(name) for name in names]
