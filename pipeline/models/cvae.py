"""The conditional VAE (Sohn et al. 2015): told the photo's category, its latents need not repeat it.

Encoder and decoder see a learned embedding of the category. Its first two rows stand for `<none>` and `<unknown>`; both
are learned, because training hides some categories behind them, so that a photo without a category, or with one that
the model never met, is encoded and decoded like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from .base import Model
from .conditions import FIRST_CATEGORY, NO_CATEGORY, UNKNOWN_CATEGORY
from .gaussian import GaussianConfig, GaussianModel


class CVAEConfig(GaussianConfig):
    """condition_dim: length of a category's embedding. condition_dropout, unknown_dropout: shares of the categories
    that training replaces by `<none>` and by `<unknown>`. See GaussianConfig and BottleneckConfig for the rest.
    """

    conditional: ClassVar[bool] = True

    kind: Literal["cvae"] = "cvae"
    condition_dim: int = Field(16, ge=1)
    condition_dropout: float = Field(0.1, ge=0, lt=1)
    unknown_dropout: float = Field(0.05, ge=0, lt=1)

    @model_validator(mode="after")
    def _some_categories_stay(self) -> CVAEConfig:
        if self.condition_dropout + self.unknown_dropout >= 1:
            raise ValueError(
                f"condition_dropout {self.condition_dropout} and unknown_dropout {self.unknown_dropout} leave no "
                "category to learn from; their sum must be below 1"
            )
        return self


class CVAE(GaussianModel):
    """q(z|x,c), p(x|z,c), p(z) = N(0, I); c is a row of the table: 0 none, 1 unknown, 2 + index of the label."""

    def __init__(
        self, config: CVAEConfig, image_size: int, labels: tuple[str, ...] = (), held: Sequence[Model] = ()
    ) -> None:
        super().__init__(config, image_size, held, condition_dim=config.condition_dim)
        self.config = config
        self.labels = tuple(labels)
        self.categories = nn.Embedding(FIRST_CATEGORY + len(self.labels), config.condition_dim)

    def embedding(self, condition: Tensor | None, rows: int) -> Tensor:
        """Return the embeddings of conditions int64 [B]; of `<none>` for None, of `<unknown>` for rows beyond all."""
        if condition is None:
            return self.categories.weight[NO_CATEGORY].expand(rows, -1)
        beyond = (condition < NO_CATEGORY) | (condition >= self.categories.num_embeddings)
        result: Tensor = self.categories(torch.where(beyond, UNKNOWN_CATEGORY, condition))
        return result

    def dropped(self, condition: Tensor | None) -> Tensor | None:
        """Return the conditions with some hidden, each photo by itself, in training mode only."""
        if condition is None or not self.training:
            return condition
        none, unknown = self.config.condition_dropout, self.config.unknown_dropout
        drawn = torch.rand(condition.shape, device=condition.device)
        hidden = torch.where(
            drawn < none, NO_CATEGORY, torch.where(drawn < none + unknown, UNKNOWN_CATEGORY, condition)
        )
        # Who has no category has not an unknown one.
        return torch.where(condition == NO_CATEGORY, condition, hidden)
