"""The few calls to a Kubernetes API that a pod makes for its own namespace, over HTTP and without a client library."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, Forbidden, Unavailable

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_GROUP = "apis/ray.io/v1"
_PATIENCE_S = 300.0  # a control plane that is upgraded is away for minutes
_TIMEOUT_S = 30.0
_LONGEST_WAIT_S = 30.0
_GONE, _TAKEN = 404, 409


@dataclass(frozen=True, slots=True)
class KubernetesApi:
    """Objects of the Ray operator in one namespace.

    url: of the API. account: folder with the files `token`, which is read anew for each call as it is renewed, and
    `ca.crt`. patience_s: for how long a call is tried again while nobody answers.
    """

    url: str
    namespace: str
    account: Path
    patience_s: float = _PATIENCE_S

    @classmethod
    def from_pod(cls) -> KubernetesApi:
        """Return the API of the cluster that this pod runs in. Raises ConfigError outside of one."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        account = Path(os.environ.get("KUBERNETES_ACCOUNT", str(_ACCOUNT)))
        if not host or not (account / "token").exists():
            raise ConfigError(
                f"no Kubernetes around: KUBERNETES_SERVICE_HOST is {host!r} and {account / 'token'} "
                f"{'is' if (account / 'token').exists() else 'is not'} there; run this in a pod with a service account"
            )
        bracketed = f"[{host}]" if ":" in host else host
        return cls(f"https://{bracketed}:{port}", (account / "namespace").read_text().strip(), account)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object, None when there is none of that name."""
        return self._call("GET", f"{kind}/{urllib.parse.quote(name)}", absent=True)

    def list(self, kind: str, selector: str) -> dict[str, Any]:
        """Return the list of objects whose labels a selector finds."""
        return self._call("GET", f"{kind}?labelSelector={urllib.parse.quote(selector)}") or {}

    def create(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        """Make an object and return it; one of that name that is there already, as after a lost answer, is returned."""
        made = self._call("POST", kind, value)
        return made or self.get(kind, value["metadata"]["name"]) or {}

    def _call(
        self, method: str, path: str, value: dict[str, Any] | None = None, *, absent: bool = False
    ) -> dict[str, Any] | None:
        """Return the answer, None for what is not there (`absent`) or, when making, there already.

        Raises ConfigError for what the API refuses, Forbidden for missing rights, Unavailable when it does not answer.
        """
        body = None if value is None else json.dumps(value).encode()
        until, wait = time.monotonic() + self.patience_s, 1.0
        while True:
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:2000]
                if error.code == _GONE and absent:
                    return None
                if error.code == _TAKEN and method == "POST":
                    return None
                if error.code in (401, 403):
                    raise Forbidden(
                        f"{method} {path} in {self.namespace} is not allowed to this account: {said}"
                    ) from error
                if error.code < 500 and error.code != 429:
                    raise ConfigError(f"the API refuses {method} {path} ({error.code}): {said}") from error
                problem = f"{error.code} {said}"
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                problem = str(error)
            if time.monotonic() > until:
                raise Unavailable(f"the API at {self.url} has not answered for {self.patience_s:g} s: {problem}")
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _once(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        address = f"{self.url}/{_GROUP}/namespaces/{self.namespace}/{path}"
        headers = {
            "Authorization": f"Bearer {(self.account / 'token').read_text().strip()}",
            "Accept": "application/json",
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(address, data=body, method=method, headers=headers)  # noqa: S310  https of from_pod
        context = None
        if self.url.startswith("https"):
            context = ssl.create_default_context(cafile=str(self.account / "ca.crt"))
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found
