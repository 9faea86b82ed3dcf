"""The data plane alone: an object store and a broker under one roof, fresh for each module."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from fieldloop.stores import broker
from fieldloop.stores.settings import Settings
from infra.rehearsal.stage import stage


@pytest.fixture(scope="module")
def data_plane() -> Iterator[Settings]:
    """Start an object store and a broker, prepared as `fieldloop up` prepares them."""
    with stage({}) as settings:
        yield settings


@pytest.fixture(scope="module")
def publish(data_plane: Settings) -> Callable[[Sequence[tuple[str, bytes]]], None]:
    """Return a function that publishes (subject, payload) pairs and waits until the streams have them."""

    async def send(messages: Sequence[tuple[str, bytes]]) -> None:
        async with broker.platform(data_plane) as (_, streams):
            for subject, payload in messages:
                await streams.publish(subject, payload)

    return lambda messages: asyncio.run(send(messages))
