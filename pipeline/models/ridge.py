"""A student in closed form: what a teacher says of photos, predicted from a descriptor of small pixels.

Kernel ridge regression (Saunders et al. 1998), with more photos than anchors by the method of Nyström (Williams and
Seeger 2001). A catalogue of some thousand photos is little for a network that learns from pixels; gradients
(`descriptor`) and how like they are to those of photos that the teacher has seen say more, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import ConfigError, InputError
from .backbones import check_image_size
from .base import Batch, Latents, Losses, Model, ModelConfig, Step, Taught, full_precision
from .descriptor import Descriptor, DescriptorConfig, DescriptorReadOutConfig
from .teachers import Teacher, refuse_conditional

_CHUNK = 2048  # rows whose likeness to all anchors is held at a time, in float64
_JITTER = 1e-9  # of the mean of a matrix's diagonal: copies among the anchors leave it without an inverse


class RidgeConfig(ModelConfig):
    """teacher: a model_id, or the config of a `pretrained` or `descriptor`; its features are what latents predict.

    sees: the descriptor, its components fitted on the same photos. anchors: at most so many training photos that a
    photo is compared with; the model holds their descriptors. width: of the likeness exp(-width * d^2), d^2 in units of
    the photos' mean square distance to their mean: a large one looks at near photos alone. strength: of the ridge, as
    the variance of noise beside a likeness of 1. mirrored: every photo is learnt from twice, once mirrored.

    numbers: how many the teacher's features are; the training fills it in, nobody else.
    """

    kind: Literal["ridge"] = "ridge"
    teacher: Teacher | None = None
    sees: DescriptorConfig = DescriptorConfig(read_out=DescriptorReadOutConfig(dims=None))
    anchors: int = Field(4096, ge=1, le=16_384)
    width: float = Field(0.5, gt=0, allow_inf_nan=False)
    strength: float = Field(0.1, gt=0, allow_inf_nan=False)
    mirrored: bool = True
    numbers: int | None = Field(None, ge=1)

    def taught_by(self) -> str | ModelConfig | None:
        """Return the teacher."""
        return self.teacher

    def taught(self, teacher: Taught) -> RidgeConfig:
        """Return the config with its teacher as it was found. Raises ConfigError for one that is told categories."""
        if self.numbers is not None:
            raise ConfigError("model.numbers is that of the teacher's features; leave it out")
        refuse_conditional(teacher)
        return self.model_copy(update={"teacher": teacher.model_id, "numbers": teacher.numbers})


class Ridge(Model):
    """A descriptor, the anchors' descriptors, and what each of these adds to a photo's latents by its likeness.

    Latents are the teacher's features as far as they can be predicted, less their mean over the training photos and
    divided by one spread for all, the root of their mean variance. Has buffers and no parameters; of anchors that there
    are no photos for the weights are 0.
    """

    trains: ClassVar[bool] = False
    fits = True

    anchors: Tensor
    weights: Tensor
    narrowness: Tensor

    def __init__(self, config: RidgeConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        if config.numbers is None:
            raise ConfigError(
                "a ridge model needs to know its teacher's features, and this one has no teacher yet; name a finished "
                "model of this store in model.teacher, or the config of a pretrained one, and train it"
            )
        self.config = config
        self.image_size = image_size
        self.descriptor = Descriptor(config.sees, image_size)
        self.latent_dim = self.num_features = config.numbers
        self.register_buffer("anchors", torch.zeros(config.anchors, self.descriptor.latent_dim))
        self.register_buffer("weights", torch.zeros(config.anchors, config.numbers))
        self.register_buffer("narrowness", torch.zeros(()))  # what squared distances are multiplied by
        self.fitted = False

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Raise ConfigError: there is no loss."""
        raise ConfigError("model.kind ridge is not trained; it is fitted in one step")

    def encode(self, images: Tensor, condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos uint8 [B, 3, H, W]. Raises ConfigError before `fit`."""
        if not self.fitted:
            raise ConfigError("the ridge is not fitted yet; call the model's fit with training photos and features")
        rows = self.descriptor.encode(images).mean
        with full_precision(rows.device.type):
            return Latents(_likeness(rows, self.anchors, self.narrowness) @ self.weights)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Set the descriptor's components, anchors and weights by photos and the teacher's features.

        The first photos are the anchors, which a training hands over in a seeded order. Computed in float64. Raises
        InputError where there are no photos, a batch lacks features, or all photos are alike to descriptor or teacher.
        """
        seen, wanted = self._gathered(batches)
        reduction = self.descriptor.reduction
        reduction.fit(seen)
        rows = reduction.reduced(seen).double()
        spread = (rows - rows.mean(dim=0)).square().sum(dim=1).mean()
        if not bool(spread > 0):
            raise InputError("the descriptor says the same of all photos; name another one in model.sees")
        narrowness = self.config.width / spread
        anchors = rows[: self.config.anchors]
        weights = _weights(rows, anchors, narrowness, _scaled(wanted.double()), self.config.strength)
        self.anchors.zero_()[: len(anchors)] = anchors
        self.weights.zero_()[: len(anchors)] = weights
        self.narrowness.copy_(narrowness)
        self.fitted = True

    def _gathered(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Return descriptors before their components, float32 [n, D], and features [n, numbers], mirrored ones too."""
        seen: list[Tensor] = []
        wanted: list[Tensor] = []
        for batch in batches:
            if batch.features is None or batch.features.shape[1] != self.num_features:
                raise InputError(f"a batch lacks the {self.num_features} features a photo that the teacher gives")
            for images in (batch.images, batch.images.flip(3)) if self.config.mirrored else (batch.images,):
                seen.append(self.descriptor.features(images))
                wanted.append(batch.features)
        if not seen:
            raise InputError("there are no photos to fit the ridge on")
        return torch.cat(seen), torch.cat(wanted)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.fitted = bool(self.narrowness > 0)  # no buffer: see Reduction


def _scaled(features: Tensor) -> Tensor:
    """Return features [n, D] less their mean, over one spread for all. Raises InputError where all rows are alike."""
    centred = features - features.mean(dim=0)
    spread = centred.square().mean().sqrt()
    if not bool(spread > 0):
        raise InputError("the teacher says the same of all photos; name another teacher")
    return centred / spread


def _likeness(rows: Tensor, anchors: Tensor, narrowness: Tensor) -> Tensor:
    """Return exp(-narrowness * squared distance) of rows [n, d] and anchors [m, d]: [n, m]."""
    squares = rows.square().sum(dim=1)[:, None] + anchors.square().sum(dim=1) - 2.0 * (rows @ anchors.T)
    return torch.exp(-narrowness * squares.clamp_min(0.0))


def _weights(rows: Tensor, anchors: Tensor, narrowness: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """Return the weights W [m, c] that bring K W next to wanted [n, c], K the likeness of all rows to the anchors.

    Least is |K W - wanted|^2 + strength * tr(W^T A W), A the anchors' likeness to each other. Where all rows are
    anchors K is A, and that is (A + strength) W = wanted.
    """
    among = _likeness(anchors, anchors, narrowness)
    if len(anchors) == len(rows):
        left, right = among, wanted
        left.diagonal().add_(strength)
    else:
        left, right = strength * among, torch.zeros(len(anchors), wanted.shape[1], dtype=wanted.dtype)
        for start in range(0, len(rows), _CHUNK):
            alike = _likeness(rows[start : start + _CHUNK], anchors, narrowness)
            left += alike.T @ alike
            right = right + alike.T @ wanted[start : start + _CHUNK]
    left.diagonal().add_(_JITTER * left.diagonal().mean())
    return torch.cholesky_solve(right, torch.linalg.cholesky(left))
