"""The service on Ray Serve, as far as it goes without a cluster: what is deployed, and what a RayService hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra serve-ray)")

from ray.serve.schema import ServeDeploySchema
from starlette.applications import Starlette

from jobs.ray_serving import app, bound
from pipeline.errors import ConfigError
from pipeline.serving import ServeConfig

SERVICE = (
    Path(__file__).resolve().parents[2] / "cluster" / "kubernetes" / "components" / "serve-on-ray" / "service.yaml"
)


def test_replicas_refuse_by_themselves_and_are_never_reconfigured() -> None:
    config = ServeConfig(store_url="/nowhere", workers=3, threads=4, queue=10, drain_s=7)
    deployment = bound(config)._bound_deployment
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests > config.threads + config.queue  # or ours would never be the 429
    assert deployment.user_config is None
    assert deployment._deployment_config.graceful_shutdown_timeout_s == 7


def test_the_service_of_the_kubernetes_files_is_one_that_ray_serve_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said: dict[str, Any] = yaml.safe_load(yaml.safe_load(SERVICE.read_text())["spec"]["serveConfigV2"])
    (served,) = ServeDeploySchema.model_validate(said).applications
    module, name = served.import_path.split(":")
    assert (module, name) == (app.__module__, app.__name__)
    shop = tmp_path / "shop.yaml"
    shop.write_text("store: /nowhere\npublish: {channel: canary}\n")
    monkeypatch.delenv("CODEBOOKS_SERVE_TOKEN", raising=False)
    assert app({**served.args, "config": str(shop)})._bound_deployment.num_replicas == 2
    with pytest.raises(ConfigError, match=r"no option 'wokers'; there are: .*workers"):
        app({"config": str(shop), "wokers": "2"})
    with pytest.raises(ConfigError, match="--workers is '0'"):
        app({"config": str(shop), "workers": "0"})


def test_a_replica_makes_the_application_where_it_runs() -> None:
    made = bound(ServeConfig(store_url="/nowhere"))._bound_deployment.func_or_class
    assert not isinstance(made, Starlette)  # an open release never travels
