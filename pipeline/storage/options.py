"""How a store is reached."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, field_validator

from .secrets import holds_user

NO_SECRETS = "secrets are never part of a config: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"


class StorageOptions(BaseModel):
    """Where and as whom S3 is reached; what is not set here comes from the usual AWS variables and files.

    endpoint: URL of an S3-compatible server (else AWS_ENDPOINT_URL). region: else AWS_REGION or AWS_DEFAULT_REGION.
    profile: a section of the AWS config and credentials files (else AWS_PROFILE). anonymous: sign nothing, for public
    buckets. Secrets are never part of a config: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or use a role.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None
    anonymous: bool = False

    @field_validator("endpoint")
    @classmethod
    def _without_user(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and (holds_user(endpoint) or "?" in endpoint):
            raise ValueError(f"must be a server's address without a user, password or query; {NO_SECRETS}")
        return endpoint

    @property
    def server(self) -> str:
        """The server that is asked, as botocore finds it: the endpoint, else the environment's; "" for AWS's own."""
        return self.endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
