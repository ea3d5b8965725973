"""The section `prior` of a config: a network of one kind and how it is trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.models.priors import PRIORS, PriorConfig
from pipeline.models.priors.pixelcnn import PixelCNNConfig
from pipeline.models.priors.transformer import TransformerConfig
from pipeline.training import PriorTrainConfig


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
