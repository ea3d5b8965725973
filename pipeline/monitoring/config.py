"""The section `monitor` of a config: who is told how a run goes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from ..storage import holds_user
from .metrics import CHANNEL_FAMILIES, RUN_FAMILIES

_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_LABEL = re.compile(r"[a-z_][a-z0-9_]*")
# Labels that our metrics, or Prometheus itself, give.
_TAKEN = frozenset(
    {"job", "instance", "le", "quantile", "command", "channel"}.union(
        *(family.labels for family in (*RUN_FAMILIES, *CHANNEL_FAMILIES))
    )
)


def _web(url: str, *, plain: bool) -> str:
    """Return an address. plain: may it be http on another machine? Raises ValueError, which names no secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as https://HOST/PATH")
    if holds_user(url):
        raise ValueError(
            "must not name a user or password; name an environment variable with the value of the Authorization "
            "header in authorization_env"
        )
    if parts.scheme == "http" and not plain and not is_loopback(parts.hostname):
        raise ValueError("must be https, but for this machine itself")
    return url


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name alone; nothing is looked up."""
    return _LOOPBACK.fullmatch(host) is not None


def authorization(name: str | None) -> dict[str, str]:
    """Return the header that a variable of the environment holds. Raises ValueError when it is not set."""
    if name is None:
        return {}
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"the environment variable {name} is not set; it holds the Authorization header's value")
    return {"Authorization": value}


class MetricsConfig(BaseModel):
    """Where Prometheus finds a run's metrics.

    textfile: the folder that node_exporter's textfile collector reads; it must be there. pushgateway: its address.
    authorization_env: the environment variable that holds the Authorization header for it (`Bearer ...`); then it is
    reached by https only. labels: of every metric, for example `{catalogue: shoes}` where several share a Prometheus.
    every_s: seconds between two writes while a run works.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    textfile: str | None = None
    pushgateway: str | None = None
    authorization_env: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    every_s: float = Field(default=15.0, ge=1.0)

    @field_validator("textfile")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        if folder is not None and folder.endswith(".prom"):
            raise ValueError("is the folder that the textfile collector reads, not a file in it: a run writes two")
        return folder if folder is None else str(Path(folder).absolute())

    @field_validator("pushgateway")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return url if url is None else _web(url, plain=True)

    @field_validator("labels")
    @classmethod
    def _free(cls, labels: dict[str, str]) -> dict[str, str]:
        for name in labels:
            if not _LABEL.fullmatch(name) or name.startswith("__"):
                raise ValueError(f"{name!r} is no label's name; use small letters, digits and _")
            if name in _TAKEN:
                raise ValueError(f"{name!r} is a label that the metrics have themselves; take another name")
        return labels

    @model_validator(mode="after")
    def _kept_secret(self) -> Self:
        if self.authorization_env and self.pushgateway:
            _web(self.pushgateway, plain=False)
        return self


class WebhookConfig(BaseModel):
    """Who gets a POST at the end of a run, whatever the end.

    url: https; many services put a secret into it, so it is printed and stored nowhere, and is best given as the
    environment variable CODEBOOKS__MONITOR__WEBHOOK__URL. authorization_env: the environment variable that holds the
    value of the Authorization header.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: (
        Annotated[SecretStr, AfterValidator(lambda url: SecretStr(_web(url.get_secret_value(), plain=False)))] | None
    ) = None
    authorization_env: str | None = None


class MonitorConfig(BaseModel):
    """Who is told how a run goes; none of it reaches what a run makes, its keys or its frozen config.

    links: the address that stands for the store in the link to a report, where people reach it by https; without it
    the link names the store. timeout_s: how long telling may hold up the end of a run, all of it together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    webhook: WebhookConfig = Field(default_factory=WebhookConfig)
    links: str | None = None
    timeout_s: float = Field(default=10.0, gt=0.0, le=20.0)

    @field_validator("links")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return url if url is None else _web(url, plain=True).rstrip("/")

    @property
    def is_idle(self) -> bool:
        """Whether nobody is told anything."""
        return not (self.metrics.textfile or self.metrics.pushgateway or self.webhook.url)
