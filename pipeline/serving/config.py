"""What a service is told: which releases it answers from, where it listens, and its limits."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from ..release.config import CHANNEL_NAME
from ..release.manifest import RELEASE_ID
from ..storage.options import StorageOptions

TOKEN_VARIABLE = "CODEBOOKS_SERVE_TOKEN"  # noqa: S105  the variable's name


class ServeConfig(BaseModel):
    """One service. Every field from `host` on is an option of `codebooks serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_url: str
    storage: StorageOptions = StorageOptions()
    channel: str = Field(default="stable", pattern=CHANNEL_NAME)
    release_id: str | None = Field(default=None, description="serve this release alone, whatever the channel does")
    expect_model: str | None = Field(default=None, description="never serve a release of another model_id")
    trusted_keys: tuple[str, ...] | None = Field(
        default=None,
        description="PEM files of public keys, separated by commas, one of which must have signed what is served",
    )
    trusted_channel: bool | None = Field(
        default=None,
        description="true: one of these keys must also have signed that it is the channel's head (`codebooks sign`)",
    )
    beside: str | None = Field(
        default=None,
        pattern=RELEASE_ID,
        description="a second release_id, or channel to follow, whose neighbours /similar?beside=true and the page put "
        "next to the first's; costs the memory of a release again: its tables in every process, its index once",
    )
    # None: whoever reaches the port may ask. Never on a command line, where `ps` shows it.
    token: SecretStr | None = None

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for all of this machine's")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 for any free one")
    workers: int = Field(default=1, ge=1, le=256, description="processes; they share the index's pages")
    threads: int = Field(default=2, ge=1, le=256, description="searches at once in each process")
    queue: int = Field(default=64, ge=0, le=100_000, description="requests that may wait in each process, else 429")
    timeout_s: float = Field(default=10.0, gt=0, le=3600, description="seconds that a request may take, else 503")
    check_one_in: int | None = Field(
        default=None,
        ge=1,
        description="of so many questions one, drawn at random, is answered once more by an exact search beside the "
        "others and compared: the recall that is seen stands in /metrics",
    )
    poll_s: float = Field(default=15.0, gt=0, le=86400, description="seconds between two looks at the channel")
    max_k: int = Field(default=1000, ge=1, description="neighbours of an item, a photo, a basket or a vector at most")
    max_rows: int = Field(default=20_000, ge=1, description="neighbours of one answer at most, of all its vectors")
    max_vectors: int = Field(default=1000, ge=1, description="vectors of one search at most")
    max_basket: int = Field(default=100, ge=1, description="items of one basket at most")
    max_body: int = Field(default=16 << 20, ge=1, description="bytes of a request's body at most")
    max_pixels: int = Field(default=40_000_000, ge=1, description="width x height of a photo that is sent, at most")
    drain_s: int = Field(default=20, ge=1, le=600, description="seconds that requests under way have after SIGTERM")

    @field_validator("trusted_keys", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        return given.split(",") if isinstance(given, str) else given
