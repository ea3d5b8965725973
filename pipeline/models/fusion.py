"""Several finished models in one space: latents brought to one scale, side by side, in fewer components where asked.

A photo's neighbours in the fused space are those that its members agree on. The fused bundle holds its members whole,
so it stays usable when they have expired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from ..images import ImagesConfig
from .backbones import check_image_size
from .base import (
    Batch,
    Latents,
    Losses,
    Model,
    ModelConfig,
    ReadConfig,
    Step,
    as_dict,
    full_precision,
    stored_transforms,
)
from .conditions import FIRST_CATEGORY
from .fusion_weights import KNOWN, Sample, asked_of, check_members, choose_weights
from .readout import Reduction, ReductionConfig

_LIMITS = ("max_pixels", "max_bytes")  # of a section `images`; they are the run's, not the member's
_REMEDY = "name finished models of this store: model.members=[MODEL_ID, MODEL_ID]"


class PartConfig(BaseModel):
    """A member's configuration, as its own bundle has it.

    images: how it sees photos, without the limits; None where all members see them as the run's own section says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, Any]
    images: tuple[dict[str, Any], ...] | None = None

    @model_serializer(mode="wrap")
    def _without_usual_images(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name != "images" or value is not None}

    @property
    def seen(self) -> tuple[dict[str, Any] | None, ...]:
        """Return how the member sees photos, once for each of its sizes."""
        return self.images or (None,)


class FusionConfig(ModelConfig):
    """members: model_ids of two or more finished bundles on the same store; each sees photos in its own size and way.

    weights: one per member, how much it counts; by default all the same. `auto` chooses among 1, 2 and 4 times the
    least (`fusion_weights`): by P@10 of categories where the catalogue names them, else by the reciprocal rank at which
    views of photos (crops, mirrored, in other light) find their photo. Up to 1,000 photos ask, a quarter at most;
    centres and scales are for that those of the others. The choice stands on the card.

    scale: `each_photo` brings every member's vector of a photo to length 1, so that without a PCA the fused cosine is
    the weighted mean of the members' cosines; `mean_norm` divides a member by the mean length of its vectors over
    training photos, so that photos keep their lengths. centre: the mean over training photos is first taken off every
    member: what all photos share tells none apart, yet would fill a vector's length (the cosines meant above are then
    about that mean). read_out: a PCA of all members' numbers; by default they are kept.

    parts: the members' own configurations; the training fills them in, nobody else (`resolved`).
    """

    kind: Literal["fusion"] = "fusion"
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] | Literal["auto"] | None = None
    scale: Literal["each_photo", "mean_norm"] = "each_photo"
    centre: bool = True
    read_out: ReductionConfig = ReductionConfig()
    parts: tuple[PartConfig, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> FusionConfig:
        wrong = [member for member in self.members if len(member) != 64 or set(member) - set("0123456789abcdef")]
        if wrong:
            raise ValueError(f"members holds {wrong[0]!r}, which is no model_id of 64 hex digits; {_REMEDY}")
        if len(self.members) == 1 or len(set(self.members)) < len(self.members):
            raise ValueError(f"members are {list(self.members)}; name at least two, and each once")
        if self.weights == "auto":
            if problem := check_members(len(self.members)):
                raise ValueError(problem)
        elif self.weights is not None:
            if not all(0 < weight < math.inf for weight in self.weights):
                raise ValueError(f"weights are {list(self.weights)}; every one must be above 0")
            if len(self.weights) != len(self.members):
                raise ValueError(
                    f"there are {len(self.weights)} weights for {len(self.members)} members; name one each"
                )
        return self

    def bundles(self) -> tuple[str, ...]:
        """Return the members."""
        return self.members

    def resolved(self, read: ReadConfig, images: Mapping[str, Any]) -> FusionConfig:
        """Return the config with its members' own, as the bundle keeps it.

        Raises NotFound that names a member the store lacks, ConfigError for no members or a conditional one.
        """
        if self.parts:
            raise ConfigError("model.parts is filled in by the training and cannot be set; name model.members alone")
        if not self.members:
            raise ConfigError(f"model.members is empty, and a fusion has at least two; {_REMEDY}")
        parts, ours = [], _way(ImagesConfig.model_validate(images))
        for member in self.members:
            config, theirs = read(member)
            if config.conditional:
                raise ConfigError(
                    f"model.members: {member} is a {config.kind}, which is told each photo's category, and a fusion is "
                    "told none; name a model of another kind"
                )
            ways = tuple(_way(each) for each in stored_transforms(theirs))
            parts.append(PartConfig(model=as_dict(config), images=ways))
        if all(part.images == (ours,) for part in parts):
            parts = [PartConfig(model=part.model) for part in parts]
        return self.model_copy(update={"parts": tuple(parts)})

    def holds(self) -> tuple[Mapping[str, Any], ...]:
        """Return the members' configurations, none before `resolved`."""
        return tuple(part.model for part in self.parts)

    def held_sizes(self, image_size: int) -> tuple[int, ...]:
        """Return each member's own size, the first of one that sees several."""
        return tuple(image_size if part.seen[0] is None else part.seen[0]["size"] for part in self.parts)

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return the members' distinct ways of seeing photos, within the limits of `images`."""
        return tuple(
            images if way is None else ImagesConfig.model_validate(way).under(images) for way in self._ways()
        ) or (images,)

    def places(self) -> tuple[tuple[int, ...], ...]:
        """Return of each member which of `transforms` it sees."""
        ways = self._ways()
        return tuple(tuple(ways.index(way) for way in part.seen) for part in self.parts)

    def _ways(self) -> list[dict[str, Any] | None]:
        found: list[dict[str, Any] | None] = []
        for way in (way for part in self.parts for way in part.seen):
            if way not in found:
                found.append(way)
        return found


class Fusion(Model):
    """The members' latents (a VAE's: the mean), scaled and concatenated. Never in training mode, nothing is trained.

    members: as `FusionConfig.holds` lists them. centres, one buffer a member [d]; factors [members]: what a member's
    vector, of length 1 (`each_photo`) or less its centre (`mean_norm`), is multiplied by. Weights enter by their square
    roots, hence into inner products as they are.
    """

    trains: ClassVar[bool] = False
    factors: Tensor

    def __init__(self, config: FusionConfig, image_size: int, members: Sequence[Model] = ()) -> None:
        super().__init__()
        check_image_size(image_size)
        if not members:
            raise ConfigError(f"a fusion is built of its members, and this one has none yet; {_REMEDY}")
        self.config = config
        self.image_size = image_size
        self.sizes = tuple(each.size for each in config.transforms(ImagesConfig(size=image_size)))
        self.places = config.places()
        if len(self.sizes) > 1 and config.read_out.invariant_to is not None:
            raise ConfigError(
                "model.read_out.invariant_to compares views of one photo, and these members see it in "
                f"{len(self.sizes)} ways; set it in the members' own read-outs, or leave it unset"
            )
        self.members = nn.ModuleList(members)
        self.widths = [member.latent_dim for member in self._members()]
        for number, width in enumerate(self.widths):
            self.register_buffer(f"centre_{number}", torch.zeros(width))
        named = None if config.weights == "auto" else config.weights
        self.shares = _shares(named or [1.0] * len(self.widths))
        self.reduction = Reduction(config.read_out, sum(self.widths))
        self.latent_dim = self.reduction.latent_dim
        self.fits = self.reduction.needs_fit or config.centre or config.scale == "mean_norm" or config.weights == "auto"
        self.fitted = not self.fits
        self.register_buffer("factors", torch.tensor(self.shares) * self.fitted)  # zeros until it is fitted
        self.eval().requires_grad_(requires_grad=False)

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """Return the sizes that the members see."""
        return self.sizes

    def train(self, mode: bool = True) -> Fusion:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Stay in evaluation mode."""
        return super().train(mode=False)

    def forward(self, batch: Batch, step: Step) -> Losses:
        """Raise ConfigError: there is no loss."""
        raise ConfigError("model.kind fusion is not trained; train its members")

    def encode(self, images: Tensor | tuple[Tensor, ...], condition: Tensor | None = None) -> Latents:
        """Return mean, float32 [B, latent_dim], of photos, uint8 [B, 3, H, W], one of each of `image_sizes`.

        Raises ConfigError before `fit`.
        """
        if not self.fitted:
            raise ConfigError("the fusion's scales are not fitted yet; call its fit with training photos")
        return Latents(self.reduction.reduced(self._joined(self._vectors(images))))

    def use_bundles(self, found: Sequence[Model]) -> None:
        """Copy the members' tensors."""
        for member, source in zip(self._members(), found, strict=True):
            member.load_state_dict(source.state_dict())

    def fit(self, batches: Iterable[Batch]) -> None:
        """Set centres and factors, then fit the components of what they make.

        With read_out.invariant_to all photos are held in memory, since their views are asked for once these are set.
        """
        if not self.fits:
            return
        batches = list(batches) if self.config.read_out.invariant_to else batches
        sample = Sample()
        noted = (sample.note(batch) for batch in batches) if self.config.weights == "auto" else batches
        gathered = [self._vectors(batch.photos) for batch in noted]
        vectors = [torch.cat(rows) for rows in zip(*gathered, strict=True)]
        if self.config.weights == "auto":
            self.shares = _shares(self._chosen(sample, vectors))
        for number, rows in enumerate(vectors):
            wide = rows.double()
            if self.config.centre:
                self._centre(number).copy_(wide.mean(dim=0))
            length = (wide - self._centre(number)).norm(dim=1).mean().item()
            if length == 0:
                raise ConfigError(
                    f"model.members: {self.config.members[number]} says the same of all photos; leave it out"
                )
            self.factors[number] = self.shares[number] / (length if self.config.scale == "mean_norm" else 1.0)
        if self.config.read_out.invariant_to:
            self.reduction.fit_batches(batches, lambda images: self._joined(self._vectors(images)))
        else:
            self.reduction.fit(self._joined(vectors))
        self.fitted = True

    def told(self) -> dict[str, Any]:
        """Return how much each member counts, as shares of 1."""
        return {"weights": {f"member {member[:12]}": share**2 for member, share in self._by_member()}}

    def _by_member(self) -> Iterable[tuple[str, float]]:
        return zip(self.config.members, self.shares, strict=True)

    def _chosen(self, sample: Sample, vectors: Sequence[Tensor]) -> tuple[float, ...]:
        """Return the weights by which photos find most of what they should."""
        photos = len(vectors[0])
        count, categories = asked_of(photos), sample.categories()
        known = [rows[count : count + KNOWN].double() for rows in vectors]
        asking, right = [rows[:count].double() for rows in vectors], torch.eye(count, dtype=torch.bool)
        if categories is not None:
            theirs, others = categories[:count].cpu(), categories[count : count + KNOWN].cpu()
            right = (theirs[:, None] == others[None, :]) & (theirs >= FIRST_CATEGORY)[:, None]
        else:
            views = zip(*(self._vectors(batch.photos) for batch in sample.views()), strict=True)
            known = [torch.cat([own, rest]) for own, rest in zip(asking, known, strict=True)]
            asking = [torch.cat(rows)[:count].double() for rows in views]
            right = F.pad(right, (0, len(known[0]) - count))
        rest = [rows[count : count + KNOWN].double() for rows in vectors]
        scaled = [self._at_one_scale(*given) for given in zip(asking, known, rest, strict=True)]
        return choose_weights([one for one, _ in scaled], [other for _, other in scaled], right.to(known[0].device))

    def _at_one_scale(self, asking: Tensor, known: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Return a member's vectors centred and scaled by those of the photos that do not ask."""
        if self.config.centre:
            asking, known, rest = (rows - rest.mean(dim=0) for rows in (asking, known, rest))
        if self.config.scale == "each_photo":
            return F.normalize(asking, dim=1), F.normalize(known, dim=1)
        length = rest.norm(dim=1).mean().clamp_min(1e-12)
        return asking / length, known / length

    def _vectors(self, images: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
        seen = images if isinstance(images, tuple) else (images,)
        vectors = []
        for member, numbers in zip(self._members(), self.places, strict=True):
            own: Any = seen[numbers[0]] if len(numbers) == 1 else tuple(seen[number] for number in numbers)
            vectors.append(member.encode(own).mean.float())
        return vectors

    def _joined(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return the members' vectors, [B, d] each, scaled and side by side, float32 [B, sum of d]."""
        with full_precision(vectors[0].device.type):
            scaled = []
            for number, rows in enumerate(vectors):
                shifted = rows - self._centre(number)
                if self.config.scale == "each_photo":
                    shifted = F.normalize(shifted, dim=1)
                scaled.append(shifted * self.factors[number])
            return torch.cat(scaled, dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.fitted = bool(self.factors.all())  # not a buffer: a graph that is exported must not branch on a value

    def _members(self) -> list[Model]:
        return [member for member in self.members if isinstance(member, Model)]

    def _centre(self, number: int) -> Tensor:
        return self.get_buffer(f"centre_{number}")


def _shares(weights: Sequence[float]) -> list[float]:
    """Return what vectors are multiplied by, so that weights enter into inner products as they are."""
    given = torch.tensor(weights, dtype=torch.float64)
    shares: list[float] = (given / given.sum()).sqrt().tolist()
    return shares


def _way(images: ImagesConfig) -> dict[str, Any]:
    """Return how photos become pixels, as plain values without the limits."""
    return {name: value for name, value in as_dict(images).items() if name not in _LIMITS}
