"""The release repository's mirror in the broker: what agents read over their one connection.

Files are written so that no metadata is ever seen that names a missing file: targets first, then what signs them, the
timestamp last.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext

from fieldloop.domain.errors import StoreError
from fieldloop.domain.release import CHUNK_BYTES, chunk_key
from fieldloop.stores import broker, objects
from fieldloop.stores.repository import Repository, stored_name
from fieldloop.stores.settings import Settings


async def copy(settings: Settings, repository: Repository, files: Mapping[str, bytes]) -> None:
    """Copy into the broker what is not there.

    What is published now is compared byte for byte, so that publishing again mends a damaged mirror.

    Args:
        settings: the installation.
        repository: the system of record.
        files: content by path of what is published now.

    Raises:
        StoreError: object store or broker refuse.
    """
    async with broker.platform(settings) as (_, js), _broker_errors("the release mirror was not written"):
        for file in repository.files.values():
            name = stored_name(file)
            if file.path in files:
                await _put(js, name, files[file.path])
            elif await _value(js, chunk_key(name, 0)) is None:
                await _put(js, name, objects.get(repository.store, "releases", name))
        for name, data in repository.metadata().items():
            await _put(js, name, data)


async def _put(js: JetStreamContext, name: str, data: bytes) -> None:
    """Write the chunks that differ, the first one last: where it is, all are. The last is shorter than a full one."""
    for index in range(len(data) // CHUNK_BYTES, -1, -1):
        key, chunk = chunk_key(name, index), data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        if await _value(js, key) != chunk:
            await js.publish(f"$KV.{broker.RELEASES}.{key}", chunk)


async def _value(js: JetStreamContext, key: str) -> bytes | None:
    try:
        message = await js.get_msg(f"KV_{broker.RELEASES}", subject=f"$KV.{broker.RELEASES}.{key}", direct=True)
    except nats.js.errors.NotFoundError:
        return None
    return message.data or b""


@asynccontextmanager
async def _broker_errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except (nats.errors.Error, TimeoutError) as exc:
        raise StoreError(f"{what}: {exc or type(exc).__name__}; is `fieldloop up` running?") from exc
