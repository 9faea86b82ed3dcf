"""Fixtures of the edge tests: one installation a session, one enrolled target a test."""

import zlib
from collections.abc import Iterator

import pytest

from fieldloop.stores.settings import Settings
from tests.edge.targets import Gateway, enrol


@pytest.fixture(scope="session")
def install(nats: Settings, store: Settings) -> Settings:
    """Join the broker and the object store of the session into one installation."""
    outside = {"store_url": store.store_endpoint, "secrets_dir": store.secrets, "keys_dir": store.keys_dir}
    return nats.model_copy(update=outside)


@pytest.fixture
def gateway(install: Settings, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """Enrol a target with one device, under the test's own name."""
    name = f"gw-{zlib.crc32(request.node.nodeid.encode())}"
    made = enrol(install, name)
    yield made
    made.stop()
