"""Loss curves that a change of code must not change unnoticed.

A curve is ten steps on made-up photos, one thread. To write them anew after a change that is meant to alter them:
    python tests/unit/test_golden_curves.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.models import MODELS, Batch, Step, build_model

FOLDER = Path(__file__).parents[1] / "golden"
SIZE, STEPS, PHOTOS = 32, 10, 16
# What the training fills in of a teacher; its features are here the mean colours of a photo's quarters.
TAUGHT = {"distilled": {"teacher": "a" * 64, "numbers": 12, "cells": 2}}
KINDS = sorted(kind for kind, (_, model) in MODELS.items() if model.trains)


def photos() -> torch.Tensor:
    """Return photos uint8 [16, 3, 32, 32]: a coloured rectangle each on white; no random numbers, whose draws may
    differ between versions, and no resizing."""
    images = torch.full((PHOTOS, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    for row in range(PHOTOS):
        top, left, height, width = row % 8, (row * 5) % 11, 8 + row % 13, 6 + (row * 7) % 15
        colour = torch.tensor([(row * 37) % 256, (row * 101) % 256, (row * 59) % 256], dtype=torch.uint8)
        images[row, :, top : top + height, left : left + width] = colour[:, None, None]
    return images


def curve(kind: str) -> list[dict[str, float]]:
    """Return total and parts of the loss at each step."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model = build_model(MODELS[kind][0].model_validate({"kind": kind, **TAUGHT.get(kind, {})}), image_size=SIZE)
        optimiser = torch.optim.SGD(model.parameters(), 1e-5)
        # No random views, whose draws may differ between versions: the second one is the mirror image.
        images = torch.cat([photos(), photos().flip(3)]) if model.views == 2 else photos()
        features = adaptive_avg_pool2d(images.float(), 2).flatten(1) if kind in TAUGHT else None
        if model.prepares:
            model.prepare([Batch(images, features=features)])
        steps = []
        for number in range(STEPS):
            optimiser.zero_grad()
            losses = model(Batch(images, features=features), Step(number, STEPS))
            losses.total.backward()
            optimiser.step()
            model.after_step()
            parts = {name: value.item() for name, value in losses.parts.items()}
            steps.append({"total": losses.total.item(), **parts})
        return steps
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_the_golden_one(kind: str) -> None:
    golden = json.loads((FOLDER / f"{kind}.json").read_text())
    found = curve(kind)
    assert len(found) == len(golden)
    for step, (one, other) in enumerate(zip(found, golden, strict=True)):
        assert one == pytest.approx(other, rel=1e-4), f"step {step}"  # CPU types round differently
    if kind != "moco":  # whose queue fills with keys harder than those it began with
        assert found[-1]["total"] < found[0]["total"]


def main() -> None:
    """Write every model's curve."""
    FOLDER.mkdir(exist_ok=True)
    for kind in KINDS:
        rows = [{name: float(f"{value:.7g}") for name, value in step.items()} for step in curve(kind)]
        text = ",\n".join("  " + json.dumps(row) for row in rows)
        (FOLDER / f"{kind}.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
