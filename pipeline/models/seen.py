"""What a reconstructing model sees of a photo: its pixels, or what a teacher says of it.

A model of features learns from rows of numbers, which takes seconds, and its bundle holds the teacher whole, so that it
encodes photos like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from ..errors import ConfigError
from ..images import ImagesConfig
from .base import Batch, Model, ModelConfig, QuietConfig, Taught, to_float
from .frozen import FrozenConfig
from .targets import FeatureTarget, PixelTarget, Target, TargetConfig, TeacherFeatures, check_named
from .teachers import FeatureScale, HeldTeacher, Scale, Teacher, held_teacher, refuse_conditional


class FeaturesSeen(QuietConfig):
    """teacher: a model_id, or the config of a `pretrained` or `descriptor`, whose features the model is made on.

    scale: see teachers.FeatureScale. hidden: widths of the encoder's layers, 1 x 1 convolutions over the teacher's
    cells; the decoder mirrors them. held: the teacher as it was found; the training fills it in, nobody else.
    """

    quiet: ClassVar[frozenset[str]] = frozenset({"held"})

    kind: Literal["features"] = "features"
    teacher: Teacher
    scale: Scale = "common"
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field((512, 256), min_length=1)
    held: HeldTeacher | None = None

    def taught(self, teacher: Taught) -> FeaturesSeen:
        """Return the config with the teacher as it was found. Raises ConfigError for one that is told categories."""
        if self.held is not None:
            raise ConfigError("model.sees.held is filled in by the training and cannot be set; name the teacher alone")
        refuse_conditional(teacher)
        return self.model_copy(update={"teacher": teacher.model_id, "held": held_teacher(teacher)})

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return the teacher's transforms, with the limits of `images`; (images,) while the teacher is a mere id."""
        if self.held is not None:
            return tuple(ImagesConfig.model_validate(values).under(images) for values in self.held.transforms)
        return (images,) if isinstance(self.teacher, str) else self.teacher.transforms(images)

    def bundles(self) -> tuple[str, ...]:
        """Return the teacher, which becomes part of the model, once it is a bundle."""
        return () if self.held is None or not isinstance(self.teacher, str) else (self.teacher,)

    def holds(self) -> tuple[Mapping[str, Any], ...]:
        """Return the teacher's model config, none before `taught`."""
        return () if self.held is None else (self.held.model,)


def features_read(config: ModelConfig) -> str | None:
    """Return the model_id of the teacher whose features are all that a finished model reads, None where it sees more.

    Its bundle holds the teacher; where the teacher's latents of a photo are there already, it needs no more of it.
    """
    sees = getattr(config, "sees", None)
    if not isinstance(sees, FeaturesSeen) or sees.held is None or not isinstance(sees.teacher, str):
        return None
    return sees.teacher


Sees = Annotated[Literal["pixels"] | FeaturesSeen, Field(union_mode="left_to_right")]


class GivingConfig(ModelConfig):
    """What models have in common with a decoder. target: what it brings back."""

    target: TargetConfig = PixelTarget()

    @model_validator(mode="after")
    def _gives_something(self) -> GivingConfig:
        if getattr(self, "sees", "pixels") == "pixels":
            check_named(self.target)
        return self

    def frozen(self) -> FrozenConfig | None:
        """Return the frozen encoder that the target looks through, or None."""
        return self.target.frozen()

    def taught_by(self) -> str | ModelConfig | None:
        """Return the teacher whose features are the target, None where none are."""
        return self.target.teacher if isinstance(self.target, FeatureTarget) else None

    def taught(self, teacher: Taught) -> GivingConfig:
        """Return the config with the teacher as it was found. Raises ConfigError for one that is told categories."""
        target = self.target.taught(teacher) if isinstance(self.target, FeatureTarget) else self.target
        return self.model_copy(update={"target": target})


class SeeingConfig(GivingConfig):
    """What models have in common that may see features. sees: `pixels`, or whose features (see FeaturesSeen), which
    are then the target too.
    """

    quiet: ClassVar[frozenset[str]] = frozenset({"sees"})
    of_pixels: ClassVar[tuple[str, ...]] = ()  # the fields that say nothing where features are seen

    sees: Sees = "pixels"

    @model_validator(mode="before")
    @classmethod
    def _features_are_the_target(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("sees", "pixels") == "pixels" or "target" in values:
            return values
        return {**values, "target": {"kind": "features"}}

    @model_validator(mode="after")
    def _sees_what_it_gives(self) -> SeeingConfig:
        target = self.target
        if not isinstance(self.sees, FeaturesSeen):
            return self
        if not isinstance(target, FeatureTarget) or target.encoder is not None or target.teacher is not None:
            raise ValueError(
                "a model that sees features gives the same features back; leave model.target out, or set target: "
                "{kind: features} with its loss and weight"
            )
        if target.scale != FeatureTarget.model_fields["scale"].default:
            raise ValueError("the scale of features that are seen is set in model.sees.scale; leave target.scale out")
        fields = type(self).model_fields
        if unused := [name for name in self.of_pixels if getattr(self, name) != fields[name].default]:
            raise ValueError(
                f"{', '.join(unused)}: of a network that sees pixels, and this one sees features, whose layers are "
                "model.sees.hidden; leave it out"
            )
        return self

    @property
    def trains_on_pixels(self) -> bool:
        """Return whether pixels are seen."""
        return self.sees == "pixels"

    def taught_by(self) -> str | ModelConfig | None:
        """Return whose features are seen or are the target, None where none are."""
        return self.sees.teacher if isinstance(self.sees, FeaturesSeen) else super().taught_by()

    def taught(self, teacher: Taught) -> SeeingConfig:
        """Return the config with the teacher as it was found. Raises ConfigError for one that is told categories."""
        target = self.target.taught(teacher) if isinstance(self.target, FeatureTarget) else self.target
        sees = self.sees.taught(teacher) if isinstance(self.sees, FeaturesSeen) else self.sees
        return self.model_copy(update={"target": target, "sees": sees})

    def transforms(self, images: ImagesConfig) -> tuple[ImagesConfig, ...]:
        """Return how photos become pixels: as the teacher's do where its features are seen."""
        return self.sees.transforms(images) if isinstance(self.sees, FeaturesSeen) else (images,)

    def bundles(self) -> tuple[str, ...]:
        """Return the teacher where its features are seen: it becomes part of the model."""
        return self.sees.bundles() if isinstance(self.sees, FeaturesSeen) else ()

    def held_sizes(self, image_size: int) -> tuple[int, ...]:
        """Return the side of the photos that the teacher is built for, where its features are seen."""
        held = self.sees.held if isinstance(self.sees, FeaturesSeen) else None
        return () if held is None else (held.image_size,)

    def holds(self) -> tuple[Mapping[str, Any], ...]:
        """Return the teacher's model config where its features are seen."""
        return self.sees.holds() if isinstance(self.sees, FeaturesSeen) else ()


class Front(nn.Module):
    """What goes into a model's encoder and what its target compares with: photos, or features of its teacher.

    teacher: held where the model sees its features, frozen. scale: of these, or of those that are the target alone.
    Without a teacher there is no state. image_size: side of the photos that `of_photos` takes.
    """

    def __init__(self, sees: str | FeaturesSeen, target: Target, image_size: int, held: Sequence[Model] = ()) -> None:
        super().__init__()
        self.image_size = image_size
        self.of_features = isinstance(sees, FeaturesSeen)
        self.reads: Literal["photos", "features"] = "features" if self.of_features else "photos"
        self.teacher: Model | None = None
        self.scale: FeatureScale | None = None
        if isinstance(sees, FeaturesSeen):
            if sees.held is None or not held:
                raise ConfigError(
                    "a model of features is built with its teacher, and this one has none yet; name a finished model "
                    "of this store in model.sees.teacher and train it"
                )
            self.image_size = sees.held.image_size
            self.teacher = held[0].eval().requires_grad_(requires_grad=False)
            self.scale = FeatureScale(sees.scale, sees.held.channels, sees.held.cells)
        elif isinstance(target, TeacherFeatures):
            self.scale = FeatureScale(target.config.scale, target.channels, target.size)
        self.num_features = 0 if self.scale is None else self.scale.numbers
        self.prepares = self.scale is not None and self.scale.needs_fit

    def train(self, mode: bool = True) -> Front:  # noqa: FBT001, FBT002 - nn.Module's signature
        """Stay in evaluation mode: a teacher is finished."""
        return super().train(mode=False)

    def inputs(self, batch: Batch) -> Tensor:
        """Return what goes into the encoder: pictures float [B, 3, H, W] in 0..1, or scaled maps of features."""
        return self._scaled(batch) if self.of_features else to_float(batch.images)

    def of_photos(self, images: Tensor) -> Tensor:
        """Return `inputs` of photos, uint8 [B, 3, H, W], as the teacher takes them where there is one."""
        if self.teacher is None or self.scale is None:
            return to_float(images)
        maps: Tensor = self.scale(self.teacher.encode(images).mean)
        return maps

    def wanted(self, batch: Batch, inputs: Tensor) -> Tensor:
        """Return what the target compares with: the inputs themselves, or scaled maps of the teacher's features."""
        return inputs if self.of_features or self.scale is None else self._scaled(batch)

    def use_bundles(self, found: Sequence[Model]) -> None:
        """Copy the teacher's tensors. Raises ConfigError where there is none to hold."""
        if self.teacher is None:
            raise ConfigError("this model is not made of other models")
        self.teacher.load_state_dict(found[0].state_dict())

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the scale where there is one."""
        if self.scale is not None:
            self.scale.fit(batches)

    def _scaled(self, batch: Batch) -> Tensor:
        assert self.scale is not None  # noqa: S101 - there wherever features are read
        maps: Tensor = self.scale(batch.features)
        return maps
