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

from pipeline.storage import Body, Files


class SlowFiles(Files):
    """Files of which each comes some seconds later, as from an object store."""

    def __init__(self, delay: float) -> None:
        super().__init__()
        self.delay = delay

    def fetch(self, uri: str, **wanted: Any) -> Body:
        time.sleep(self.delay)
        return super().fetch(uri, **wanted)


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
