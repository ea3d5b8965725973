"""How photos become pixels: the configuration of the evaluation transform, and its id."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..keys import key_of, portable

# To be raised by hand whenever `decode` may return other pixels, or refuse other photos, for the same bytes and config.
TRANSFORM_VERSION = 2

Fit = Literal["pad", "crop", "stretch"]
Resample = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Keep = Literal["auto", "always", "never"]

# Fields that came later: as they stand here they say nothing, so that ids, keys and stored configs stay as they were.
_LATER = {"resample": "bicubic", "antialias": True, "crop_share": None}


class ImagesConfig(BaseModel):
    """How photos are decoded to pixels, uint8 [size, size, 3]; larger photos than the two limits are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int = Field(default=64, ge=8, le=1024, description="side of the square pixels, in pixels")
    fit: Fit = Field(
        default="pad",
        description="pad: the longest side becomes `size`, edge pixels fill the rest; "
        "crop: the central square; stretch: both sides become `size`",
    )
    resample: Resample = Field(default="bicubic", description="the filter of the resizing, as Pillow names it")
    antialias: bool = Field(
        default=True,
        description="whether the filter widens as photos shrink; no: as OpenCV does and old tensor pipelines did",
    )
    crop_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="of crop alone: the shorter side becomes `size / crop_share` and the central square of `size` is "
        "kept, both in whole pixels as torchvision and timm count them; 0.875 is the 224 of 256 of most ImageNet "
        "networks; none: the largest square, to the fraction of a pixel",
    )
    # The upper bound lies below the size at which Pillow itself refuses (178,956,970), so that only this limit decides.
    max_pixels: int = Field(default=64_000_000, ge=1, le=170_000_000, description="width x height in the header")
    max_bytes: int = Field(default=64 * 2**20, ge=1, le=2**31 - 1, description="length of the file")
    # Left out of what the model says of itself, hence of every key, id and bundle: it changes no pixel.
    keep: Keep = Field(
        default="auto",
        exclude=True,
        description="whether pixels are stored for later nights: auto: where a training reads them",
    )

    def under(self, limits: ImagesConfig) -> ImagesConfig:
        """Return how the same pixels are made of photos that another config's two limits allow."""
        return self.model_copy(
            update={"max_pixels": limits.max_pixels, "max_bytes": limits.max_bytes, "keep": limits.keep}
        )

    @model_validator(mode="after")
    def _goes_together(self) -> ImagesConfig:
        if self.crop_share is not None and self.fit != "crop":
            raise ValueError(
                f"crop_share is {self.crop_share} and fit is {self.fit!r}, which crops nothing; set fit to crop, or "
                "leave crop_share out"
            )
        if not self.antialias and self.resample in ("box", "lanczos"):
            raise ValueError(
                f"antialias is off and resample is {self.resample!r}, which is nothing without it; name bilinear, "
                "bicubic or nearest"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}

    def key_values(self) -> dict[str, Any]:
        """Return what goes into a train key: how photos look, not which are refused; the limits stand as by default."""
        limits = {name: type(self).model_fields[name].default for name in ("max_pixels", "max_bytes")}
        return {**self.model_dump(mode="json"), **limits}


def transform_id(*configs: ImagesConfig) -> str:
    """Return the id of how photos become the pixels of one part: 16 hex of the key of (TRANSFORM_VERSION, config).

    Of several, which a model of several sizes sees, of the list of them.
    """
    values = [portable(config.model_dump(mode="json")) for config in configs]
    return key_of([TRANSFORM_VERSION, values[0] if len(values) == 1 else values])[:16]
