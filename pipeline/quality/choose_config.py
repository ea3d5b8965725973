"""What `choose` compares and how: candidates by name, folds, seeds."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import ConfigError
from ..evaluation.folds import FOLDS

PHOTOS = 5_000  # items of the seeded sample that is looked at unless more are asked for
SECTIONS = ("images", "model", "train")


def default_candidates(size: int) -> dict[str, dict[str, Any]]:
    """Return what a config's own model is compared with where it names nothing: what costs seconds and is hard to beat.

    size: of photos in pixels, of which a cell of gradients is an eighth.
    """
    gradients = {"kind": "descriptor", "features": "hog", "cell": max(4, size // 8)}
    views = {"dims": 64, "invariant_to": {"min_area": 0.9}}
    return {
        "gradients": {"model": {**gradients, "read_out": {"dims": 64}}},
        "gradients_views": {"model": {**gradients, "read_out": views}},
    }


class ChooseConfig(BaseModel):
    """candidates: by name, the sections `model`, `images` and `train` of a config, as far as they differ from its own.

    A `fusion` may name other candidates as its members. None named: the config's own model beside gradients by formula.
    folds: how many, each asked once of what the others give. by: the column whose values stay in one fold, by default
    train.split_by, else item_id. seeds: of the trainings; models that are only fitted take the first alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: dict[str, dict[str, Any]] = Field(default_factory=dict)
    folds: int = Field(default=FOLDS, ge=2)
    by: str | None = None
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)

    @field_validator("candidates")
    @classmethod
    def _only_sections(cls, candidates: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, sections in candidates.items():
            if wrong := sorted(set(sections) - set(SECTIONS)):
                raise ValueError(f"candidate {name!r} has {', '.join(wrong)}; it may have {', '.join(SECTIONS)}")
            if "model" not in sections:
                raise ValueError(f"candidate {name!r} has no section model; write model: {{kind: ...}}")
        return candidates

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds are {list(seeds)}; name each once, from 0 on")
        return seeds

    def asked(self, *, folds: int | None, by: str | None, seeds: str | None) -> ChooseConfig:
        """Return these settings with what a command line says in their place; seeds: with commas between them.

        Raises ConfigError.
        """
        given = {"folds": folds, "by": by, "seeds": seeds and seeds.split(",")}
        try:
            return ChooseConfig.model_validate(
                {**self.model_dump(), **{name: value for name, value in given.items() if value is not None}}
            )
        except ValueError as error:
            raise ConfigError(f"--folds, --by or --seeds: {error}") from error
