"""The model contract: what every representation model offers to training, encoding and evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from ..errors import ConfigError, NotReconstructing
from ..images import ImagesConfig
from ..losses.precision import full_precision as full_precision
from ..storage import Files
from .conditions import NO_CATEGORY
from .frozen import FrozenConfig, FrozenEncoder


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: images uint8 [B, 3, H, W] (or [views * B, 3, H, W]); condition int64 [B] or None.

    A condition is a row of a conditional model's table of categories: see `conditions.condition_of`. codes int64
    [B, h, w] are what a prior reads; its images are [B, 3, 0, 0]. features float32 [B, D] are what the model's teacher
    says of the photos (its latents' mean), where it has one. others: the same photos in the further sizes that the
    model sees, uint8 [B, 3, H, W] each.
    """

    images: Tensor
    condition: Tensor | None = None
    codes: Tensor | None = None
    features: Tensor | None = None
    others: tuple[Tensor, ...] = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed, for example moved to a device; in the order of the fields."""
        images = change(self.images)
        condition, codes, features = (
            None if values is None else change(values) for values in (self.condition, self.codes, self.features)
        )
        return Batch(images, condition, codes, features, others=tuple(change(values) for values in self.others))

    @property
    def photos(self) -> Any:
        """Return what `Model.encode` takes: images, and of a model of several sizes a tuple of one each."""
        return (self.images, *self.others) if self.others else self.images


@dataclass(frozen=True, slots=True)
class Step:
    """Where in training a forward pass happens. number counts optimiser steps from 0; total is their planned sum."""

    number: int
    total: int


@dataclass(frozen=True, slots=True)
class Losses:
    """A training loss: `total` [] is what is minimised, `parts` are its named, detached members; means over photos."""

    total: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latents:
    """What an encoder says of photos: mean float [B, d]; log_var float [B, d] or None; codes int [B, h * w] or None."""

    mean: Tensor
    log_var: Tensor | None = None
    codes: Tensor | None = None


class QuietConfig(BaseModel):
    """A frozen configuration with fields that came later: at their default they are in no dump.

    What has no such setting keeps its train key and the bytes of its bundle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quiet: ClassVar[frozenset[str]] = frozenset()  # the names of these fields

    @model_serializer(mode="wrap")
    def _without_quiet_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        silent = [name for name in self.quiet if getattr(self, name) == fields[name].default]
        return {name: value for name, value in values.items() if name not in silent}


@dataclass(frozen=True, slots=True)
class Taught:
    """What a model knows of its teacher, a finished bundle, before it is built.

    config: its model config; transforms: how its photos become pixels, one for each size; image_size: side of the
    first. numbers: how many its features are, D; cells: the side of the layout they keep, channel first: D is channels
    * cells * cells, 1 where there is none.
    """

    model_id: str
    config: ModelConfig
    transforms: tuple[ImagesConfig, ...]
    image_size: int
    numbers: int
    cells: int


class ModelConfig(QuietConfig):
    """Base of the models' configurations; `kind` tells them apart in the union of `models/__init__.py`."""

    conditional: ClassVar[bool] = False  # whether the model is told the photos' categories

    kind: str

    @property
    def trains_on_pixels(self) -> bool:
        """Return whether a training looks at pixels; else at a teacher's features alone."""
        return True

    def taught_by(self) -> str | ModelConfig | None:
        """Return whose features the model learns from: a model_id, the config of what is made first, or None."""
        return None

    def taught(self, teacher: Taught) -> ModelConfig:
        """Return the config with its teacher named by model_id and its features' shape, as the bundle keeps it."""
        return self

    def frozen(self) -> FrozenConfig | None:
        """Return which frozen encoder the training needs beside the model, or None."""
        return None

    def file(self) -> str | None:
        """Return the path or URI of a file of weights that becomes part of the model (`use_file`), or None."""
        return None

    def described(self, files: Files) -> ModelConfig:
        """Return the config with what the file that it names says, as the bundle keeps it; most name none.

        Raises NotFound, Forbidden, Unavailable, InputError for a file that cannot be used, ConfigError.
        """
        return self

    def bundles(self) -> tuple[str, ...]:
        """Return the model_ids of finished models that become parts of this one, in the order `use_bundles` takes."""
        return ()

    def resolved(self, read: ReadConfig, images: Mapping[str, Any]) -> ModelConfig:
        """Return the config that the model is built with and the bundle keeps: with what `bundles` say, else itself.

        read: model and images config of a bundle by its model_id (`bundle.resolved_config` brings it). images: the
        images config as plain values. A train key is of what was asked, the config before this: model_ids are digests
        of content, so it says as much. Raises NotFound, ConfigError.
        """
        return self

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return how the model's photos become pixels, one for each size it sees; images: the run's own section."""
        return (images,)

    def holds(self) -> tuple[Mapping[str, Any], ...]:
        """Return the configurations, as plain values, of the models this one is built around; `build_model` makes them.

        They are what `resolved` filled in for `bundles`.
        """
        return ()

    def held_sizes(self, image_size: int) -> tuple[int, ...]:
        """Return the side of the photos, in pixels, that each of `holds` is built for; image_size: the model's own."""
        return (image_size,) * len(self.holds())


# How photos become pixels as a bundle's config.json has it: one config, or one for each size that the model sees.
StoredImages = Mapping[str, Any] | Sequence[Mapping[str, Any]]
ReadConfig = Callable[[str], tuple[ModelConfig, StoredImages]]


def stored_transforms(images: StoredImages) -> tuple[ImagesConfig, ...]:
    """Return how photos become pixels, as a bundle says it."""
    several = [images] if isinstance(images, Mapping) else images
    return tuple(ImagesConfig.model_validate(each) for each in several)


def images_values(transforms: Sequence[ImagesConfig]) -> dict[str, Any] | list[dict[str, Any]]:
    """Return what a bundle says of how photos become pixels, as plain values."""
    several = [as_dict(each) for each in transforms]
    return several[0] if len(several) == 1 else several


class Model(nn.Module, ABC):
    """A representation model over square RGB photos, mostly of one size.

    DDP hooks only `forward`, so the training loss is `forward`. `encode` is deterministic and scales the uint8 pixels
    itself, so that the exported encoder takes uint8 too.
    """

    views: ClassVar[int] = 1  # of each photo in a batch of `forward`
    reads: Literal["photos", "codes", "features"] = "photos"  # what of a batch the model is about
    compares: ClassVar[bool] = False  # whether the loss is about photos of a batch together
    trains: ClassVar[bool] = True  # False: the model is ready once it has what `use_frozen` brings
    takes_categories: ClassVar[bool] = False  # whether `supervised` says something to its loss
    supervised: bool = False  # the loss is to bring photos of one category (a batch's condition) together
    fits: bool = False  # whether `fit` has something to do
    prepares: bool = False  # whether `prepare` has something to do
    num_features: int = 0  # D of the `Batch.features` that a training needs; 0: it needs none
    image_size: int
    latent_dim: int
    labels: tuple[str, ...] = ()  # of a conditional model: the categories it knows
    num_latent_codes: int = 0  # h * w of `Latents.codes`; 0: the model has none
    has_log_var: bool = False

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Return the sides of the photos that `encode` takes, in pixels, in the order of its transforms."""
        return (self.image_size,)

    @abstractmethod
    def forward(self, batch: Batch, step: Step) -> Losses:
        """Return the training loss of a batch; in evaluation mode without any collective and without restarts."""

    @abstractmethod
    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return the latents of photos, uint8 [B, 3, H, W], in evaluation mode and without randomness.

        A model of several sizes (`image_sizes`) takes a tuple of the same photos in each of them.
        """

    def decode(self, latents: Latents, condition: Tensor | None = None) -> Tensor:
        """Return pictures float [B, 3, H, W] in 0..1. Raises NotReconstructing where there is no decoder."""
        raise NotReconstructing(f"{type(self).__name__} has no decoder to pixels")

    def reconstruct(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return photos, uint8 [B, 3, H, W], as `decode` draws them from their latents, float [B, 3, H, W] in 0..1.

        Raises NotReconstructing.
        """
        if type(self).decode is Model.decode:  # nothing need be encoded, which may not be possible yet
            raise NotReconstructing(f"{type(self).__name__} has no decoder to pixels")
        return self.decode(self.encode(images, condition), condition)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """Return the encoder's feature maps, finest first, float [B, C, h, w] each, of pictures float [B, 3, H, W].

        What a perceptual loss or a feature target looks at. Raises ConfigError where the encoder has no maps.
        """
        raise ConfigError(f"{type(self).__name__} has no feature maps; name a model with a convolutional encoder")

    def encode_batch(self, batch: Batch) -> Latents:
        """Return `encode` of a batch's photos; of a model that reads features of these, and no photo is looked at."""
        return self.encode(batch.images, batch.condition)

    def augmented(self, images: Tensor) -> Tensor:
        """Return what `forward` takes of photos, uint8 [B, 3, H, W]: themselves, or random views [views * B, 3, H, W].

        Training and validation ask for it on the model's device, whose generator draws.
        """
        return images

    def code_levels(self, codes: Tensor) -> Mapping[str, Tensor]:
        """Return the codes of each codebook by its level's name, of codes int [B, num_latent_codes]; "" of only one.

        The same number means different vectors on two levels, so uses are counted level by level.
        """
        return {"": codes}

    def use_frozen(self, frozen: FrozenEncoder) -> None:
        """Take the frozen encoder that `ModelConfig.frozen` asked for; it never becomes part of the model's state."""
        raise ConfigError(f"{type(self).__name__} trains without a frozen encoder")

    def use_file(self, data: bytes, source: str) -> None:
        """Take over the weights of the file that `ModelConfig.file` names; they become part of the model's state."""
        raise ConfigError(f"{type(self).__name__} takes no weights of a file")

    def use_bundles(self, found: Sequence[Model]) -> None:
        """Take over the finished models that `ModelConfig.bundles` names; they become part of the model's state."""
        raise ConfigError(f"{type(self).__name__} is not made of other models")

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set what a training needs to know of its photos before the first step, where `prepares` says so.

        Called once a training, on every rank, with the same photos in the same order as `fit`.
        """

    def fit(self, batches: Iterable[Batch]) -> None:
        """Set what is computed from training photos once the weights are final, for example a PCA (`ReadOut.fit`).

        Called in evaluation mode before the bundle is written, on one rank, with each of up to 20,000 photos once.
        """

    def told(self) -> dict[str, Any]:
        """Return what `fit` has chosen, for the model's card: a mapping for each section."""
        return {}

    def blank(self) -> Batch:
        """Return the plainest batch of one that `forward` takes, without a category: a black photo, features of 0."""
        side = self.image_size if self.reads == "photos" else 0
        black = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        features = torch.zeros(1, self.num_features) if self.num_features else None
        return Batch(black, torch.full((1,), NO_CATEGORY, dtype=torch.int64), features=features)

    def after_step(self) -> None:
        """Run after every optimiser step, on every rank: EMA updates, restarts of dead codes."""

    def scalars(self) -> dict[str, float]:
        """Return measures over all steps and ranks since the last call (for example codebook perplexity).

        Every rank calls this at the end of an epoch.
        """
        return {}


def to_float(images: Tensor) -> Tensor:
    """Return uint8 pixels as float32 in 0..1."""
    return images.to(torch.float32) / 255.0


def to_grey(pictures: Tensor) -> Tensor:
    """Return the brightness of colour pictures, float [B, 3, H, W] to [B, 1, H, W] (ITU-R BT.601, as Pillow's "L")."""
    red, green, blue = pictures.unbind(dim=1)
    # As differences from green: a grey picture comes out with the same bits.
    return (green + 0.299 * (red - green) + 0.114 * (blue - green)).unsqueeze(1)


def as_dict(config: BaseModel) -> dict[str, Any]:
    """Return a config as plain JSON values."""
    return config.model_dump(mode="json")
