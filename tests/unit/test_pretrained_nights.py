"""A night with a pretrained network: photos are decoded as it wants them, whatever the section `images` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foreign_files as FILES
import stages_here as HERE
from jobs.__main__ import main
from pipeline.images import ImagesConfig, decode
from pipeline.images.render import render_products
from pipeline.models import load_bundle
from pipeline.reader import open_release
from pipeline.storage import open_store

PHOTOS = 24


@pytest.mark.slow
def test_latents_are_the_networks_own_and_the_next_night_needs_its_file_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    HERE.run_stages_here(monkeypatch)
    monkeypatch.setattr("pipeline.storage.cache.tempfile.gettempdir", lambda: str(tmp_path))
    layer = FILES.graph_file(tmp_path / "g.onnx")
    photos = [photo for _, photo in render_products(PHOTOS, seed=0, size=(60, 80))]
    lines = ["item_id,image"]
    for number, photo in enumerate(photos):
        (tmp_path / f"{number}.png").write_bytes(photo)
        lines.append(f"item-{number:02d},{number}.png")
    (tmp_path / "catalogue.csv").write_text("\n".join(lines) + "\n")
    model = {"kind": "pretrained", "weights": str(tmp_path / "g.onnx"), "output": "vector", "licence": "MIT"}
    model["preprocessing"] = {**FILES.PLAIN, "channels": "bgr", "crop_share": 0.8, "resample": "bilinear"}
    words = [f"store={tmp_path / 'store'}", f"catalogue.source={tmp_path / 'catalogue.csv'}", "images.size=64"]
    words += [f"model={json.dumps(model)}", "index.kind=flat", "index.metric=cosine", "train.validation=0"]
    words += ["catalogue.item_id=item_id", "catalogue.image=image"]

    def night(name: str) -> dict[str, Any]:
        code = main(["refresh", "--json", "--run", name, *words])
        taken = capsys.readouterr()
        assert code == 0, taken.out + taken.err
        answer: dict[str, Any] = json.loads(taken.out)
        return answer

    night("first")
    store = open_store(str(tmp_path / "store"))
    release = open_release(str(tmp_path / "store"))
    bundle = load_bundle(store, release.model_id)
    (seen,) = bundle.transforms
    assert (seen.size, seen.crop_share, seen.resample) == (FILES.SIZE, 0.8, "bilinear")
    found = np.stack(release.latents(["item-03", "item-17"])["mean"].to_pylist())
    wanted = []
    for number in (3, 17):
        pixels = torch.tensor(decode(photos[number], ImagesConfig.model_validate(seen.model_dump())))
        given = FILES.normalised(pixels.permute(2, 0, 1)[None].flip(1))
        with torch.no_grad():
            wanted.append(F.relu(layer(given)).mean(dim=(2, 3))[0].numpy())
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=1e-4)
    (tmp_path / "g.onnx").unlink()
    (tmp_path / "catalogue.csv").write_text("\n".join(lines[:-4]) + "\n")
    night("second")
    assert open_release(str(tmp_path / "store")).model_id == release.model_id
