"""Releases: a TUF repository in bucket `releases`, and its mirror in the broker.

The object store is the system of record; agents read the mirror over their one broker connection. Files are written so
that no metadata is ever seen that names a missing file: targets first, then targets metadata, snapshot, timestamp.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import nats.errors
import nats.js.errors
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from fieldloop.domain.enrolment import AgentConfig
from fieldloop.domain.errors import ReleaseError, StoreError
from fieldloop.domain.release import (
    CHUNK_BYTES,
    MANIFEST,
    File,
    Manifest,
    Release,
    chunk_key,
    decode_manifest,
    release_folder,
)
from fieldloop.stores import broker, objects
from fieldloop.stores.repository import OFFLINE, ROLES, Repository, expiry, stored_name
from fieldloop.stores.settings import Settings


@dataclass(frozen=True)
class Published:
    """A release in the repository: its digest, the path of its manifest, and whether it was new there."""

    digest: str
    manifest: str
    new: bool


def publish(settings: Settings, release: Release) -> Published:
    """Sign a release into the repository and mirror it; one that is there already changes nothing.

    Raises:
        ReleaseError: the release contradicts itself, or the repository's metadata is not signed by this install.
        StoreError: object store or broker refuse.
    """
    manifest = release.open(release.digest)
    folder = release_folder(manifest.model, manifest.version)
    files = {f"{folder}/{name}": data for name, data in release.files().items()}
    with _repository(settings) as repository:
        new = repository.add(files, datetime.now(UTC))
        asyncio.run(_mirror(settings, repository, files))
    return Published(release.digest, f"{folder}/{MANIFEST}", new)


def manifest_of(settings: Settings, published: Published) -> Manifest:
    """Return the manifest of a release in the repository.

    Raises:
        StoreError: it is not there.
        ReleaseError: what is there is not this release.
    """
    folder, _, name = published.manifest.rpartition("/")
    key = f"targets/{folder}/{published.digest}.{name}"  # the digest is the manifest's own hash
    data = objects.get(objects.client(settings, "releases"), "releases", key)
    if File.of(data).sha256 != published.digest:
        raise ReleaseError(f"releases/{key}: expected SHA-256 {published.digest}, got {File.of(data).sha256}")
    return decode_manifest(data)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did and saw: the roles that it signed anew, and when each role's metadata expires (UTC)."""

    renewed: tuple[str, ...]
    expires: Mapping[str, datetime]

    def expiring(self, now: datetime, within: timedelta) -> dict[str, datetime]:
        """Return the offline roles that expire soon: no refresh signs those anew."""
        return {role: at for role, at in self.expires.items() if role in OFFLINE and at - now < within}


def refresh(settings: Settings, now: datetime) -> Refreshed:
    """Sign snapshot and timestamp anew where they are past half their life, and mirror what the mirror lacks.

    Doing it again changes nothing; a refresh that was killed is finished by the next. Before the first release there
    is nothing to refresh.

    Raises:
        ReleaseError: the repository's metadata is not signed by this install.
        StoreError: object store or broker refuse.
    """
    with _repository(settings) as repository:
        if not repository.signed:
            return Refreshed((), {})
        renewed = repository.renew(now)
        asyncio.run(_mirror(settings, repository, {}))
        return Refreshed(renewed, repository.expires())


def trusted_root(settings: Settings) -> bytes:
    """Return the root metadata that agents are given at enrolment; the install's keys are made where there are none."""
    with _lock(settings):
        return _trusted_root(settings, _keys(settings))


def agent_config(settings: Settings, target: str, devices: Mapping[str, str]) -> Path:
    """Write the folder with which a target's agent starts (its certificate must be enrolled) and return `agent.json`.

    Args:
        settings: the installation.
        target: the edge target's name.
        devices: profile name by device.
    """
    folder = settings.data_dir / "agents" / target
    _private_folder(folder)
    certificate = settings.certificate("target", target)
    config = AgentConfig(
        target=target,
        devices=dict(devices),
        broker=settings.nats_endpoint,
        cert=os.path.relpath(certificate.cert, folder),
        key=os.path.relpath(certificate.key, folder),
        ca=os.path.relpath(certificate.ca, folder),
        trusted_root="root.json",
        state="state",
    )
    _write_private(folder / config.trusted_root, trusted_root(settings))
    path = folder / "agent.json"
    _write_private(path, msgspec.json.format(msgspec.json.encode(config), indent=2))
    return path


@contextmanager
def _repository(settings: Settings) -> Iterator[Repository]:
    with _lock(settings):
        keys = _keys(settings)
        yield Repository(objects.client(settings, "releases"), _trusted_root(settings, keys), keys)


@contextmanager
def _lock(settings: Settings) -> Iterator[None]:
    """One writer at a time: whoever signs has the keys on this machine."""
    folder = settings.secrets / "tuf"
    _private_folder(folder)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _keys(settings: Settings) -> dict[str, CryptoSigner]:
    """Return the signer of each role; keys are made once."""
    signers = {}
    for role in ROLES:
        path = settings.secrets / "tuf" / f"{role}.pem"
        if not path.exists():
            _write_private(path, CryptoSigner.generate_ed25519().private_bytes)
        signers[role] = CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    return signers


def _trusted_root(settings: Settings, signers: Mapping[str, CryptoSigner]) -> bytes:
    """Return the root metadata, kept beside the keys so that it does not come from what it is to judge."""
    path = settings.secrets / "tuf" / "root.json"
    if not path.exists():
        root = Root(version=1, expires=expiry("root", datetime.now(UTC)), consistent_snapshot=True)
        for role in ROLES:
            root.add_key(signers[role].public_key, role)
        metadata = Metadata(root)
        metadata.sign(signers["root"])
        _write_private(path, metadata.to_bytes())
    return path.read_bytes()


async def _mirror(settings: Settings, repository: Repository, files: Mapping[str, bytes]) -> None:
    """Copy into the broker what is not there: files first, then metadata, the timestamp last.

    What is published now is compared byte for byte, so that publishing again mends a damaged mirror.
    """
    async with broker.platform(settings) as (_, js), _broker_errors("the release mirror was not written"):
        for file in repository.files.values():
            name = stored_name(file)
            if file.path in files:
                await _put(js, name, files[file.path])
            elif await _value(js, broker.RELEASES, chunk_key(name, 0)) is None:
                await _put(js, name, objects.get(repository.store, "releases", name))
        for name, data in repository.metadata().items():
            await _put(js, name, data)


async def _put(js: JetStreamContext, name: str, data: bytes) -> None:
    """Write the chunks that differ, the first one last: where it is, all are. The last is shorter than a full one."""
    for index in range(len(data) // CHUNK_BYTES, -1, -1):
        key, chunk = chunk_key(name, index), data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        if await _value(js, broker.RELEASES, key) != chunk:
            await js.publish(f"$KV.{broker.RELEASES}.{key}", chunk)


async def _value(js: JetStreamContext, bucket: str, key: str) -> bytes | None:
    message = await _last(js, bucket, key)
    return (message.data or b"") if message else None


async def _last(js: JetStreamContext, bucket: str, key: str) -> RawStreamMsg | None:
    try:
        return await js.get_msg(f"KV_{bucket}", subject=f"$KV.{bucket}.{key}", direct=True)
    except nats.js.errors.NotFoundError:
        return None


@asynccontextmanager
async def _broker_errors(what: str) -> AsyncIterator[None]:
    try:
        yield
    except (nats.errors.Error, TimeoutError) as exc:
        raise StoreError(f"{what}: {exc or type(exc).__name__}; is `fieldloop up` running?") from exc


def _private_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


def _write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    beside.replace(path)
