"""Where a refresh publishes, and who signs what it publishes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CHANNEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class SignConfig(BaseModel):
    """key: where the private key lies on the machine that runs the command.

    That is the path of a PEM file, or `env:NAME` for a variable that holds the PEM text; a list of several, each of
    which signs, while readers move from one key to the next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: tuple[str, ...] = Field(min_length=1, max_length=8)

    @field_validator("key", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("key")
    @classmethod
    def _no_key_itself(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if any("-----" in key or "\n" in key or not key.strip() for key in keys):
            raise ValueError("must name where the key lies (a path, or env:NAME), never be the key itself")
        return keys


class PublishConfig(BaseModel):
    """channel: the log that a finished refresh appends to (`stable`, `canary`). sign: by whom releases are signed.

    canary: the channel of releases of another bundle than that of the current release of `channel`; they wait there
    for `codebooks promote`. Without it a new bundle goes live with its first release that passes the gates.
    keep_space: rotate a new bundle's vectors onto the space of the release before, so that what consumers have learned
    from these goes on working; for the metrics `l2` and `cosine`, which a rotation leaves as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: str = Field(default="stable", pattern=CHANNEL_NAME)
    sign: SignConfig | None = None
    canary: str | None = Field(default=None, pattern=CHANNEL_NAME)
    keep_space: bool = False

    @model_validator(mode="after")
    def _apart(self) -> PublishConfig:
        if self.canary == self.channel:
            raise ValueError(f"canary is {self.canary!r}, the channel itself; name another one, for example canary")
        return self
