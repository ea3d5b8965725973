"""How the workers of one training meet, on whatever machines they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.train.torch import TorchConfig


def torch_config(backend: str) -> TorchConfig:
    """Return Ray Train's own way to join workers by `backend`, where Gloo listens at the address that Ray has of each.

    Gloo by itself listens at the address of the machine's name, and at loopback where the name has none of its own:
    workers of two machines then never meet.
    """
    from ray.train.torch import TorchConfig

    base: Any = TorchConfig().backend_cls

    class Meeting(base):  # type: ignore[misc]
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(listen_at_ray_address)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            return Meeting

    return Config(backend=backend)


def listen_at_ray_address() -> None:
    """Name Gloo the network interface that has this machine's address in Ray, unless GLOO_SOCKET_IFNAME names one.

    Where no interface has it, as behind a translated address, Gloo is left to itself.
    """
    import psutil
    import ray

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for interface, held in psutil.net_if_addrs().items():
        if any(each.address == address for each in held):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
