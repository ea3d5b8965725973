"""How photos become pixels: the configuration of the evaluation transform, and its id."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..keys import key_of, portable

# To be raised by hand whenever `decode` may return other pixels, or refuse other photos, for the same bytes and config.
TRANSFORM_VERSION = 2

Fit = Literal["pad", "crop", "stretch"]
Keep = Literal["auto", "always", "never"]


class ImagesConfig(BaseModel):
    """How photos are decoded to pixels, uint8 [size, size, 3]; larger photos than the two limits are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=64, ge=8, le=1024, description="side of the square pixels, in pixels")
    fit: Fit = Field(
        default="pad",
        description="pad: the longest side becomes `size`, edge pixels fill the rest; "
        "crop: the central square; stretch: both sides become `size`",
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
