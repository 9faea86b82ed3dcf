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
from typing import Final, TypeVar

import msgspec
import nats.errors
import nats.js.errors
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from minio import Minio
from minio.error import S3Error
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

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
from fieldloop.stores.settings import Settings

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
LIFETIME: Final = {"root": 365, "targets": 365, "snapshot": 30, "timestamp": 30}  # days until a signature expires

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)


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
        new = repository.add(files)
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


class _Repository:
    """The signed roles as they are in the bucket, verified against this install's own root."""

    def __init__(self, store: Minio, root: bytes, signers: Mapping[str, CryptoSigner]) -> None:
        self.store = store
        self._root = root
        self._signers = signers
        timestamp: Metadata[Timestamp] | None = self._load("timestamp", "timestamp.json")
        if timestamp is None:
            self._timestamp, self._snapshot = Metadata(Timestamp()), Metadata(Snapshot())
            self._targets = Metadata(Targets())
            return
        self._timestamp = timestamp
        self._snapshot = self._require("snapshot", timestamp.signed.snapshot_meta.version)
        self._targets = self._require("targets", self._snapshot.signed.meta["targets.json"].version)

    def add(self, files: Mapping[str, bytes]) -> bool:
        """Sign files in where they are new or changed, renew what is past half its life; return whether any were."""
        described = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()}
        changed = [path for path, file in described.items() if self.files.get(path) != file]
        for path in changed:
            objects.put(self.store, "releases", stored_name(described[path]), files[path])
        self.files.update(described)
        targets = self._sign("targets", self._targets) if changed or _stale(self._targets) else False
        if targets:
            self._snapshot.signed.meta["targets.json"] = MetaFile(self._targets.signed.version)
        snapshot = self._sign("snapshot", self._snapshot) if targets or _stale(self._snapshot) else False
        if snapshot:
            self._timestamp.signed.snapshot_meta = MetaFile(self._snapshot.signed.version)
        if snapshot or _stale(self._timestamp):
            self._sign("timestamp", self._timestamp)
        return bool(changed)

    @property
    def files(self) -> dict[str, TargetFile]:
        """The signed files by path."""
        return self._targets.signed.targets

    def metadata(self) -> dict[str, bytes]:
        """Return the current metadata by name, the timestamp last."""
        return {
            "metadata/1.root.json": self._root,
            f"metadata/{self._targets.signed.version}.targets.json": self._targets.to_bytes(),
            f"metadata/{self._snapshot.signed.version}.snapshot.json": self._snapshot.to_bytes(),
            "metadata/timestamp.json": self._timestamp.to_bytes(),
        }

    def _sign(self, role: str, metadata: Metadata[_T]) -> bool:
        """Write the role's next version."""
        if metadata.signatures:
            metadata.signed.version += 1
        metadata.signed.expires = _expiry(role)
        metadata.sign(self._signers[role])
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        objects.put(self.store, "releases", f"metadata/{name}", metadata.to_bytes(), "application/json")
        return True

    def _require(self, role: str, version: int) -> Metadata[_T]:
        metadata: Metadata[_T] | None = self._load(role, f"{version}.{role}.json")
        if metadata is None:
            raise ReleaseError(
                f"releases/metadata/{version}.{role}.json is missing: restore the bucket from a backup, or empty it "
                "and publish again"
            )
        return metadata

    def _load(self, role: str, name: str) -> Metadata[_T] | None:
        data = _get_or_none(self.store, f"metadata/{name}")
        if data is None:
            return None
        root: Metadata[Root] = Metadata.from_bytes(self._root)
        try:
            metadata: Metadata[_T] = Metadata.from_bytes(data)
            root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError as exc:
            raise ReleaseError(
                f"releases/metadata/{name}: not signed by the keys of this installation: {exc}: restore the bucket, "
                "or the folder `tuf` among the secrets, from a backup"
            ) from exc
        return metadata


def stored_name(file: TargetFile) -> str:
    """Return the name under which a target is stored: consistent snapshots put its hash before it."""
    folder, _, name = file.path.rpartition("/")
    return f"targets/{folder}/{file.hashes['sha256']}.{name}"


@contextmanager
def _repository(settings: Settings) -> Iterator[_Repository]:
    with _lock(settings):
        keys = _keys(settings)
        yield _Repository(objects.client(settings, "releases"), _trusted_root(settings, keys), keys)


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
        root = Root(version=1, expires=_expiry("root"), consistent_snapshot=True)
        for role in ROLES:
            root.add_key(signers[role].public_key, role)
        metadata = Metadata(root)
        metadata.sign(signers["root"])
        _write_private(path, metadata.to_bytes())
    return path.read_bytes()


async def _mirror(settings: Settings, repository: _Repository, files: Mapping[str, bytes]) -> None:
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


def _expiry(role: str) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=LIFETIME[role])


def _stale(metadata: Metadata[_T]) -> bool:
    """Say whether a role is unsigned or past half its life."""
    left = metadata.signed.expires - datetime.now(UTC)
    return not metadata.signatures or left < timedelta(days=LIFETIME[metadata.signed.type] / 2)


def _get_or_none(store: Minio, key: str) -> bytes | None:
    try:
        return objects.get(store, "releases", key)
    except StoreError as exc:
        if isinstance(exc.__cause__, S3Error) and exc.__cause__.code == "NoSuchKey":
            return None
        raise


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
