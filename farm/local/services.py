"""The farm's own services, as programs for the supervisor: one table."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from farm import processors
from farm.local import ports
from farm.local.ports import LOOPBACK
from farm.local.process import Program
from farm.local.servers import Addresses
from farm.local.state import DataDirectory, FarmIdentity

#: On one machine webhooks go to a developer's own server, which a farm on a network must never reach.
METRICS_API_PORT = 9461  #: of the API; dispatcher and deliverer follow
MAX_WORKERS = 32  #: whose metrics ports are kept from webhooks
METRICS_WORKER_PORT = 9464  #: of the first worker; the next ones follow
WEBHOOKS_TO_LOOPBACK = {"FARM_WEBHOOK_ALLOW": "127.0.0.0/8,::1/128", "FARM_WEBHOOK_ALLOW_HTTP": "true"}


@dataclass(frozen=True)
class ServiceAddresses:
    """Where the services of one farm listen."""

    api_host: str
    api_port: int
    flower_port: int
    flower_login: str  #: ``user:password``, or several with commas between
    listen: str | None = None  #: the address at which other machines reach this farm, if any shall

    @classmethod
    def of(
        cls, farm: FarmIdentity, api_host: str, inherited: Mapping[str, str] = os.environ, listen: str | None = None
    ) -> ServiceAddresses:
        """The addresses of a prepared farm."""
        login = inherited.get("FARM_FLOWER_AUTH") or f"farm:{farm.secret('flower')}"
        return cls(api_host, farm.ports["api"], farm.ports["flower"], login, listen)

    @property
    def url(self) -> str:
        """The API, as this machine reaches it."""
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def external_url(self) -> str | None:
        """The API, as other machines reach it, if they do."""
        return None if self.listen is None else f"http://{self.listen}:{self.api_port}"

    @property
    def flower_url(self) -> str:
        """Flower, with user and password."""
        user, _, password = self.flower_login.partition(",")[0].strip().partition(":")
        return f"http://{quote(user, safe='')}:{quote(password, safe='')}@{LOOPBACK}:{self.flower_port}"

    def api_ready(self) -> bool:
        """Whether ``/readyz`` answers 200."""
        return bool(self.readiness())

    def readiness(self) -> dict[str, str]:
        """What ``/readyz`` says of each server, if it answers 200; else nothing."""
        connection = http.client.HTTPConnection(LOOPBACK, self.api_port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            return dict(json.loads(answer.read())) if answer.status == http.client.OK else {}
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        finally:
            connection.close()


def environment(
    inherited: Mapping[str, str], directory: DataDirectory, addresses: Addresses, service_addresses: ServiceAddresses
) -> dict[str, str]:
    """What every service finds in its environment; the user's variables override our defaults for webhooks."""
    return {
        # other people's submissions must not reach what listens on this machine's loopback
        **(WEBHOOKS_TO_LOOPBACK if service_addresses.listen is None else {}),
        **inherited,
        **addresses.environment(),
        "FARM_DATA_DIR": str(directory.path),
        "FARM_OWN_PORTS": own_ports(directory.farm()),
        "FARM_API_HOST": service_addresses.api_host,
        "FARM_API_PORT": str(service_addresses.api_port),
        "PYTHONUNBUFFERED": "1",
        **_external(addresses, service_addresses),
    }


def own_ports(farm: FarmIdentity) -> str:
    """The loopback ports that no webhook and no input URL may reach; API and S3 admit nobody without a key."""
    found = {port for name, port in farm.ports.items() if name not in ("api", "s3")}
    metrics = range(METRICS_API_PORT, METRICS_WORKER_PORT + MAX_WORKERS)
    return ",".join(map(str, sorted(found | set(metrics))))


def _external(addresses: Addresses, service_addresses: ServiceAddresses) -> dict[str, str]:
    """What makes a farm reachable from other machines: how they name this one, and the token that lets workers in."""
    if service_addresses.listen is None:
        return {}
    found = {"FARM_JOIN_HOST": service_addresses.listen}
    store = urlsplit(addresses.s3_endpoint_url or "")
    if store.hostname == LOOPBACK:
        found["FARM_S3_PUBLIC_URL"] = f"http://{service_addresses.listen}:{store.port}"
    return found


def _proxy_program(
    base: Mapping[str, str], addresses: Addresses, service_addresses: ServiceAddresses
) -> tuple[Program, ...]:
    """The TCP proxy for other machines, if ``listen`` is set."""
    if service_addresses.listen is None:
        return ()
    urls = (service_addresses.url, addresses.database_url, addresses.redis_url, addresses.s3_endpoint_url or "")
    ports = [str(part.port) for part in map(urlsplit, urls) if part.hostname == LOOPBACK]
    argv = (sys.executable, "-P", "-m", "farm.local.tcp_proxy", service_addresses.listen, *ports)
    return (Program("proxy", argv, base, address=service_addresses.listen),)


def table(
    inherited: Mapping[str, str],
    directory: DataDirectory,
    addresses: Addresses,
    service_addresses: ServiceAddresses,
    devices: tuple[str, ...],
) -> tuple[Program, ...]:
    """The services in the order in which they start."""
    base = environment(inherited, directory, addresses, service_addresses)
    flower = {
        "FLOWER_ADDRESS": LOOPBACK,
        "FLOWER_PORT": str(service_addresses.flower_port),
        "FARM_FLOWER_AUTH": service_addresses.flower_login,
    }
    return (
        Program(
            "api",
            _command("api"),
            {"FARM_FLOWER_URL": f"http://{LOOPBACK}:{service_addresses.flower_port}", **base},
            address=service_addresses.url,
            ready=service_addresses.api_ready,
            essential=True,
            start_seconds=60.0,
        ),
        *_proxy_program(base, addresses, service_addresses),
        Program("dispatcher", _command("dispatcher"), base),
        Program("deliverer", _command("deliverer"), base),
        *(
            Program(
                worker_name(device),
                _command("worker"),
                {
                    **torch_threads(devices),
                    "FARM_METRICS_WORKER_PORT": str(METRICS_WORKER_PORT + index),
                    **base,
                    "FARM_DEVICE": device,
                    "FARM_WORKER_ALIVE_FILE": str(alive_file(directory, device)),
                },
                address=device,
                alive_file=alive_file(directory, device),
                stop_seconds=30.0,  # it finishes or releases the jobs on its device
            )
            for index, device in enumerate(devices)
        ),
        Program(
            "flower",
            _command("flower"),
            {**base, **flower},
            address=f"http://{LOOPBACK}:{service_addresses.flower_port}",
            ready=lambda: ports.answers(service_addresses.flower_port),
        ),
    )


def alive_file(directory: DataDirectory, device: str) -> Path:
    """What a worker touches while it is not frozen."""
    return directory.path / f"{worker_name(device)}.alive"


def torch_threads(devices: tuple[str, ...]) -> dict[str, str]:
    """Workers that render on the processors share them with each other and with the servers, unless the user chose."""
    on_processors = sum(device.startswith("cpu") for device in devices)
    if not on_processors or os.environ.get("FARM_TORCH_THREADS"):
        return {}
    return {"FARM_TORCH_THREADS": str(processors.for_workers(on_processors))}


def worker_name(device: str) -> str:
    """The name of the worker that owns a device: ``worker-cuda0``."""
    return f"worker-{device.replace(':', '')}"


def _command(service: str) -> tuple[str, ...]:
    # -P: a folder named "farm" where the user happens to stand is not this package.
    return (sys.executable, "-P", "-m", "farm.cli", service)
