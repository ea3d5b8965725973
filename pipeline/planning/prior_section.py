"""The section `prior` of a config, and what a prior of a release is: its key, and the codes that it learns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from ..errors import ConfigError
from ..models import Bundle
from ..models.priors import PRIORS, PriorConfig
from ..models.priors.pixelcnn import PixelCNNConfig
from ..models.priors.stored import prior_key
from ..models.priors.transformer import TransformerConfig
from ..models.vqvae import VQVAE
from ..models.vqvae2 import VQVAE2
from ..release import Manifest
from ..training import PriorTrainConfig, train_period


class PixelCNNSection(PixelCNNConfig):
    """A gated PixelCNN and its training."""

    train: PriorTrainConfig = Field(default_factory=PriorTrainConfig)


class TransformerSection(TransformerConfig):
    """A causal transformer and its training."""

    train: PriorTrainConfig = Field(default_factory=PriorTrainConfig)


AnyPriorSection = Annotated[PixelCNNSection | TransformerSection, Field(discriminator="kind")]


# Of one epoch over the codes of Fashion-MNIST, of about the same cost, it learned more than a PixelCNN.
DEFAULT_PRIOR: AnyPriorSection = TransformerSection.model_validate({})


def network_of(section: AnyPriorSection) -> PriorConfig:
    """Return the network of a section, without its training: what the prior on the store is named by."""
    return PRIORS[section.kind][0].model_validate(section.model_dump(exclude={"train"}))


def train_key_of(
    section: AnyPriorSection, run: str, manifest: Manifest, column: str | None, *, former: bool = False
) -> str:
    """Return the key of the prior of a release that is asked for.

    column: of the categories that a prior `by_category` is told. former: as versions gave it whose keys held the
    hardware.
    """
    train, sample = section.train, manifest.sample
    period = train_period(train, run=run, now=time.time())
    return prior_key(
        network_of(section),
        manifest.model_id,
        train.continued_values() if former else train.key_values(),
        train.seed,
        train.version,
        # A model that is not trained is the same of a sample and of the catalogue; a prior of its codes is not.
        period if sample is None else ";".join([f"sample:{sample.limit}:{sample.seed}", *([period] if period else [])]),
        condition=column if section.by_category else None,
    )


def codes_of(manifest: Manifest, bundle: Bundle) -> int:
    """Return how many codes the model of a release has. Raises ConfigError for one without, or of two levels."""
    if isinstance(bundle.model, VQVAE2):
        raise ConfigError(
            f"release {manifest.release_id} is of a {manifest.model_kind!r} model, whose codes lie on two levels; "
            "priors do not read these yet: refresh with model.kind=vqvae, or name such a release with --release"
        )
    if not isinstance(bundle.model, VQVAE):
        raise ConfigError(
            f"release {manifest.release_id} is of a {manifest.model_kind!r} model, whose latents have no codes; a "
            "prior learns those of a VQ model: refresh with model.kind=vqvae, or name such a release with --release"
        )
    return int(bundle.model.quantizer.num_codes)


def category_column(catalogue: Mapping[str, Any], prior: AnyPriorSection) -> str | None:
    """Return the column of categories, None where none is named.

    Raises ConfigError for a prior `by_category` without one.
    """
    column = catalogue.get("category")
    if column is not None and not isinstance(column, str):
        raise ConfigError(f"catalogue.category is {column!r}; write the name of a column of the catalogue")
    if column is None and prior.by_category:
        raise ConfigError(
            "prior.by_category is true and catalogue.category is not set; set it to the catalogue's column of "
            "categories, or set prior.by_category to false"
        )
    return column
