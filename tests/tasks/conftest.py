"""The data plane alone: an object store and a broker under one roof, fresh for each module."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from fieldloop.stores import broker
from fieldloop.stores.settings import Settings
from infra.local import broker as broker_service
from infra.local import platform as platform_services
from infra.local import store as store_service
from infra.local.authority import make_authority
from infra.local.keys import make_secrets
from infra.local.stack import start_stack, stop_stack


@pytest.fixture(scope="module")
def data_plane(free_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Start an object store and a broker, prepared as `fieldloop up` prepares them."""
    settings = free_settings()
    make_secrets(settings)
    make_authority(settings)
    start_stack(settings, platform_services.PLATFORM, [store_service.spec(settings), broker_service.spec(settings)])
    store_service.prepare(settings)
    platform_services.prepare_broker(settings)
    yield settings
    stop_stack(settings, platform_services.PLATFORM)


@pytest.fixture(scope="module")
def publish(data_plane: Settings) -> Callable[[Sequence[tuple[str, bytes]]], None]:
    """Return a function that publishes (subject, payload) pairs and waits until the streams have them."""

    async def send(messages: Sequence[tuple[str, bytes]]) -> None:
        async with broker.platform(data_plane) as (_, streams):
            for subject, payload in messages:
                await streams.publish(subject, payload)

    return lambda messages: asyncio.run(send(messages))
