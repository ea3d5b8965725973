"""The same application on Ray Serve: replicas on the nodes of a cluster, each of which follows the channel by itself.

The swap is never left to Ray: a replica that `user_config` reconfigures takes no requests meanwhile.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jobs.command import Arguments
from jobs.place import LightConfig, load_light
from jobs.ray_session import ray_session
from jobs.sources import read_config
from pipeline.errors import ConfigError, Unavailable
from pipeline.nodes import ClusterConfig
from pipeline.serving import ServeConfig, answering_address, application, parse_settings
from pipeline.stopping import STOPPING

if TYPE_CHECKING:
    from ray.serve import Application

_NAME = "codebooks"
_AROUND = 64  # requests that a replica takes beyond its places: those that it refuses, and the quick ones
_LOOK_EVERY_S = 2.0
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


def app(arguments: Mapping[str, str]) -> Application:
    """Return the application for `import_path: jobs.ray_serving:app` of a Ray Serve config (RayService).

    arguments: `config`, a YAML file that every node has, and any option of `codebooks serve` under its name. Raises
    ConfigError.
    """
    given = dict(arguments)
    light = load_light(Arguments(config=given.pop("config", None)))
    channel = given.pop("channel", light.publish.channel)
    return bound(parse_settings(given, light.store.url, light.store.options(), channel))


def bound(config: ServeConfig) -> Application:
    """Return one deployment of `config.workers` replicas, of one CPU each, that make the application where they run."""
    serve = _ray_serve()

    def build() -> Any:
        return application(config)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name=_NAME,
        num_replicas=config.workers,
        # More than a replica works on and lets wait: it answers what is too much with its own 429, and says why.
        max_ongoing_requests=config.threads + config.queue + _AROUND,
        graceful_shutdown_timeout_s=config.drain_s,
        ray_actor_options={"num_cpus": 1},
    )
    made: Application = deployment.bind()
    return made


class _WithCluster(LightConfig):
    cluster: ClusterConfig = ClusterConfig()


def serve_on_ray(config: ServeConfig, arguments: Arguments) -> None:
    """Serve on the cluster that a command line names, or one of this machine, until SIGTERM or Ctrl-C.

    Every node listens on the address. Raises ConfigError when the replicas cannot start, Unavailable when they have
    ended, and what a store raises that is not reached.
    """
    serve = _ray_serve()
    cluster = read_config(arguments, _WithCluster).cluster
    with ray_session(cluster, busy=config.workers, settings={"store": {"url": config.store_url}}):
        http = {"host": config.host, "port": config.port, "request_timeout_s": config.timeout_s + config.drain_s}
        serve.start(proxy_location="EveryNode", http_options=http)
        try:
            serve.run(bound(config), name=_NAME, route_prefix="/", blocking=False)
        except RuntimeError as error:
            raise ConfigError(f"the service did not start on Ray: {error}") from error
        try:
            address = answering_address(config)
            sys.stderr.write(f"serving {config.store_url} on {address} with {config.workers} replica(s) on Ray\n")
            while (found := serve.status().applications.get(_NAME)) and found.status not in _FAILED:
                time.sleep(_LOOK_EVERY_S)
            raise Unavailable(f"the service on Ray is {found.status if found else 'gone'}; its replicas' logs say why")
        except KeyboardInterrupt:
            if not STOPPING.requested:
                raise
        finally:
            serve.delete(_NAME)  # requests under way have drain_s


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"--on ray needs Ray Serve, and {error.name!r} is not installed; "
            "run `pip install 'visual-codebooks[run,cpu,serve,serve-ray]'`"
        ) from error
    return serve
