"""Where a refresh publishes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

CHANNEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class PublishConfig(BaseModel):
    """channel: the log that a finished refresh appends to (`stable`, `canary`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str = Field(default="stable", pattern=CHANNEL_NAME)
