"""Photos per second: `decode` against a plain `Image.open().convert("RGB").resize()`, in one process.

    python tests/benchmarks/bench_decode.py [--photos FOLDER] [--count N] [--pairs N] [--size N] [--json]

Runs alternate A B A B; printed are the median ratio of a pair and the range of the middle half. Without a folder, JPEGs
of 400 x 533 pixels are made here.
"""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import numpy as np
from made_photos import make_photo
from options import Options
from PIL import Image
from timing import spread

from pipeline.images import ImagesConfig, decode


def plain(data: bytes, size: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = size / max(picture.size)
    return np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))


def main() -> None:
    options = Options(__doc__, photos=Path, count=500, pairs=7, size=64, json=False).parse_args()
    if options.photos is None:
        generator = np.random.default_rng(0)
        photos = [make_photo(generator) for _ in range(options.count)]
    else:
        files = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
        photos = [path.read_bytes() for path in files[: options.count]]
    config = ImagesConfig(size=options.size)

    def seconds(*, ours: bool) -> float:
        start = time.perf_counter()
        for data in photos:
            if ours:
                decode(data, config)
            else:
                plain(data, options.size)
        return time.perf_counter() - start

    seconds(ours=True)  # imports and caches
    pairs = [(seconds(ours=True), seconds(ours=False)) for _ in range(options.pairs)]
    ratio, *half = spread([theirs / mine for mine, theirs in pairs])
    result = {
        "photos": len(photos),
        "size": options.size,
        "decode_per_s": round(float(len(photos) / np.median([mine for mine, _ in pairs]))),
        "plain_per_s": round(float(len(photos) / np.median([theirs for _, theirs in pairs]))),
        "ratio": ratio,
        "ratio_middle_half": half,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f"{result['photos']} photos to {options.size} px: decode {result['decode_per_s']:,}/s, plain "
            f"{result['plain_per_s']:,}/s, median ratio of {options.pairs} pairs {ratio} "
            f"(middle half {half[0]} to {half[1]})"
        )


if __name__ == "__main__":
    main()
