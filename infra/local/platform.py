"""The platform on one machine: object store, broker, Prefect with a worker, MLflow; up, down, status.

`up` makes what is missing of secrets and certificates, starts the stack `platform`, and prepares each service as soon
as it answers. A service whose address is given (`FIELDLOOP_<SERVICE>_URL`) is an outside one: it is probed, no more.
"""

import asyncio
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal
from urllib.parse import urlsplit

from fieldloop.domain.errors import ServiceError
from fieldloop.stores.settings import Settings
from infra.local import broker, servers, signer, store
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.stack import Report, Spec, stack_status, start_stack, stop_stack
from infra.local.supervisor import answers

PLATFORM: Final = "platform"
EDGE: Final = "edge"  # the agents that `fieldloop demo` runs on this machine; they stop first
DEFAULT_PORTS: Final = {"http": 80, "https": 443, "tls": 4222}

Phase = Literal["ready", "starting", "not answering", "stopped", "failed"]


@dataclass(frozen=True)
class ServiceStatus:
    """One service, as `fieldloop status` shows it; `seconds` is from the start of `up` until ready."""

    name: str
    title: str
    phase: Phase
    url: str
    pid: int | None
    seconds: float | None
    log: str


@dataclass(frozen=True)
class PlatformStatus:
    """The platform: `ready` if every service answers; else `reason` says what is wrong."""

    ready: bool
    reason: str
    data_dir: str
    services: tuple[ServiceStatus, ...]


def up(settings: Settings, report: Report, waiting: Callable[[Sequence[str], float], None]) -> bool:
    """Start the platform; return False where it ran already, and nothing was changed.

    Raises:
        ServiceError: a service cannot be started, reached or prepared; what was started is stopped again.
    """
    make_secrets(settings)
    make_authority(settings)
    _make_signing_keys(settings)
    for name, url in _outside(settings).items():
        if not answers(_probe(url)):
            raise ServiceError(f"{name}: nothing answers at {url} (FIELDLOOP_{name.upper()}_URL)")
    return start_stack(
        settings, PLATFORM, specs(settings), prepare=_preparations(settings), report=report, waiting=waiting
    )


def down(settings: Settings) -> bool:
    """Stop the platform, and the agents that run on this machine; data stays. Return whether anything ran."""
    return any([stop_stack(settings, EDGE), stop_stack(settings, PLATFORM)])


def status(settings: Settings) -> PlatformStatus:
    """Look at every service: its supervisor's word, and whether it answers now."""
    state = stack_status(settings, PLATFORM)
    services = [_embedded(settings, name) for name in ("store", "nats", "signer", "prefect", "mlflow", "worker")]
    found = tuple(service for service in services if service is not None)
    outside = tuple(_look(name, url) for name, url in _outside(settings).items())
    if state is None:
        return PlatformStatus(False, "it was never started: `fieldloop up`", str(settings.data_dir), outside)
    every = found + outside
    ready = state.phase == "running" and all(service.phase == "ready" for service in every)
    silent = ", ".join(service.name for service in every if service.phase == "not answering")
    reason = state.reason or ("" if ready else f"not answering: {silent}" if silent else f"it is {state.phase}")
    return PlatformStatus(ready, reason, str(settings.data_dir), every)


def specs(settings: Settings) -> tuple[Spec, ...]:
    """Return the services that run on this machine, in the order in which they are shown."""
    wanted: list[tuple[str | None, Callable[[Settings], Spec]]] = [
        (settings.store_url, store.spec),
        (settings.nats_url, broker.spec),
        (settings.nats_url, signer.spec),
        (settings.prefect_url, servers.prefect_spec),
        (settings.mlflow_url, servers.mlflow_spec),
        (None, servers.worker_spec),
    ]
    return tuple(make(settings) for outside, make in wanted if outside is None)


def prepare_broker(settings: Settings) -> None:
    """Make the broker's streams, before any device may publish into them."""
    asyncio.run(_prepare_broker(settings))


async def _prepare_broker(settings: Settings) -> None:
    from fieldloop.stores import broker as client

    async with client.platform(settings) as (_, streams):
        await client.prepare(streams, mapped=settings.nats_url is None)


def _make_signing_keys(settings: Settings) -> None:
    """Make the keys that sign releases, so that no run of a flow ever has to."""
    from fieldloop.stores import releases

    releases.trusted_root(settings)


def _preparations(settings: Settings) -> dict[str, Callable[[], None]]:
    began = datetime.datetime.now(datetime.UTC)
    return {
        "store": partial(store.prepare, settings),
        "nats": partial(prepare_broker, settings),
        "prefect": partial(servers.prepare_prefect, settings, began),
        "worker": partial(servers.await_worker, settings, began),
    }


def _outside(settings: Settings) -> dict[str, str]:
    urls = {
        "store": settings.store_url,
        "nats": settings.nats_url,
        "prefect": settings.prefect_url,
        "mlflow": settings.mlflow_url,
    }
    return {name: url for name, url in urls.items() if url is not None}


def _embedded(settings: Settings, name: str) -> ServiceStatus | None:
    """Return the status of a service that the supervisor runs; None where it runs none of that name."""
    state = stack_status(settings, PLATFORM)
    known = next((service for service in state.services if service.name == name), None) if state else None
    if known is None:
        return None
    phase: Phase = "starting" if known.phase in ("waiting", "restarting") else known.phase  # type: ignore[assignment]
    if phase == "ready" and known.url and not answers(_probe(known.url.split()[0])):
        phase = "not answering"
    return ServiceStatus(name, known.title, phase, known.url, known.pid, known.seconds, known.log)


def _look(name: str, url: str) -> ServiceStatus:
    phase: Phase = "ready" if answers(_probe(url)) else "not answering"
    return ServiceStatus(name, f"{name} (outside)", phase, url, None, None, "")


def _probe(url: str) -> str:
    """Return the TCP address behind a URL, as `answers` wants it."""
    parts = urlsplit(url)
    return f"tcp://{parts.hostname}:{parts.port or DEFAULT_PORTS.get(parts.scheme, 443)}"
