"""The signed metadata of the release repository in bucket `releases`: read, verified, added to, renewed."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar

from minio import Minio
from minio.error import S3Error
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from fieldloop.domain.errors import ReleaseError, StoreError
from fieldloop.stores import objects

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
OFFLINE: Final = ("root", "targets")  # signed when a release is published or keys are made, never by a refresh

# Days until a signature expires. Those of the online roles bound how long a mirror can be held still unnoticed; a daily
# refresh renews them past half of it, so that three days without one do no harm. An agent that runs needs none of them.
LIFETIME: Final = {"root": 365, "targets": 365, "snapshot": 14, "timestamp": 7}

_T = TypeVar("_T", Root, Targets, Snapshot, Timestamp)


class Repository:
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

    @property
    def signed(self) -> bool:
        """Whether anything has been signed yet."""
        return bool(self._timestamp.signatures)

    def add(self, files: Mapping[str, bytes], now: datetime) -> bool:
        """Sign files in where they are new or changed, renew what is past half its life; return whether any were."""
        described = {path: TargetFile.from_data(path, data, ["sha256"]) for path, data in files.items()}
        changed = [path for path, file in described.items() if self.files.get(path) != file]
        for path in changed:
            objects.put(self.store, "releases", stored_name(described[path]), files[path])
        self.files.update(described)
        if changed or _stale(self._targets, now):
            self._sign("targets", self._targets, now)
            self._snapshot.signed.meta["targets.json"] = MetaFile(self._targets.signed.version)
            self._sign_snapshot(now)
        self.renew(now)
        return bool(changed)

    def renew(self, now: datetime) -> tuple[str, ...]:
        """Sign the online roles anew that are past half their life; return them."""
        if _stale(self._snapshot, now):
            self._sign_snapshot(now)
            return ("snapshot", "timestamp")
        if _stale(self._timestamp, now):
            self._sign("timestamp", self._timestamp, now)
            return ("timestamp",)
        return ()

    def expires(self) -> dict[str, datetime]:
        """Return when the metadata of each role expires."""
        root: Metadata[Root] = Metadata.from_bytes(self._root)
        signed = (root.signed, self._targets.signed, self._snapshot.signed, self._timestamp.signed)
        return {each.type: each.expires for each in signed}

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

    def _sign_snapshot(self, now: datetime) -> None:
        """Write the next snapshot, and the timestamp that names it."""
        self._sign("snapshot", self._snapshot, now)
        self._timestamp.signed.snapshot_meta = MetaFile(self._snapshot.signed.version)
        self._sign("timestamp", self._timestamp, now)

    def _sign(self, role: str, metadata: Metadata[_T], now: datetime) -> None:
        """Write the role's next version."""
        if metadata.signatures:
            metadata.signed.version += 1
        metadata.signed.expires = expiry(role, now)
        metadata.sign(self._signers[role])
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        objects.put(self.store, "releases", f"metadata/{name}", metadata.to_bytes(), "application/json")

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


def expiry(role: str, now: datetime) -> datetime:
    """Return when metadata of a role that is signed now expires."""
    return now.replace(microsecond=0) + timedelta(days=LIFETIME[role])


def _stale(metadata: Metadata[_T], now: datetime) -> bool:
    """Say whether a role is unsigned or past half its life."""
    left = metadata.signed.expires - now
    return not metadata.signatures or left < timedelta(days=LIFETIME[metadata.signed.type] / 2)


def _get_or_none(store: Minio, key: str) -> bytes | None:
    try:
        return objects.get(store, "releases", key)
    except StoreError as exc:
        if isinstance(exc.__cause__, S3Error) and exc.__cause__.code == "NoSuchKey":
            return None
        raise
