"""The signed metadata of the release repository in bucket `releases`: read, verified, added to, renewed."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from minio import Minio
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from fieldloop.domain.errors import ReleaseError
from fieldloop.stores import objects
from fieldloop.stores.signing import Keys, Role
from fieldloop.stores.trust import LIFETIME, Trust, digest, expiry

ONLINE: Final[tuple[Role, ...]] = ("releases", "snapshot", "timestamp")  # in the order in which they are signed


class Repository:
    """The online roles as they are in the bucket, held against what the offline keys have signed."""

    def __init__(self, store: Minio, trust: Trust, keys: Keys) -> None:
        self.store = store
        self.trust = trust
        self._keys = keys
        self._carried = trust.carried()
        self._replaced: set[Role] = set()  # roles whose metadata is right but by a key that was replaced
        self._timestamp, self._snapshot, self._releases = self._read()

    @property
    def signed(self) -> bool:
        """Whether anything has been signed yet."""
        return bool(self._timestamp.signatures)

    @property
    def files(self) -> dict[str, TargetFile]:
        """The signed files by path."""
        return self._releases.signed.targets

    def content(self, path: str) -> bytes:
        """Return a signed file.

        Raises:
            ReleaseError: it is not among the signed ones, or is another in the bucket.
            StoreError: it is not in the bucket.
        """
        if path not in self.files:
            raise ReleaseError(f"{path}: not among the signed files: `fieldloop release list` shows what is")
        name = stored_name(self.files[path])
        data = objects.get(self.store, "releases", name)
        if digest(data) != self.files[path].hashes["sha256"]:
            raise ReleaseError(f"releases/{name}: expected SHA-256 {self.files[path].hashes['sha256']}, got another")
        return data

    def holds(self, files: Mapping[str, bytes]) -> bool:
        """Say whether these very files are signed, by path."""
        return all(self.files.get(path) == _described(path, data) for path, data in files.items())

    def change(self, files: Mapping[str, bytes], gone: Collection[str], now: datetime) -> bool:
        """Sign files in where they are new or changed, others out, renew what needs it; return whether any were."""
        described = {path: _described(path, data) for path, data in files.items()}
        changed = [path for path, file in described.items() if self.files.get(path) != file]
        for path in changed:
            objects.put(self.store, "releases", stored_name(described[path]), files[path])
        left = [path for path in gone if self.files.pop(path, None)]
        self.files.update(described)
        self.settle(now, changed=bool(changed or left))
        return bool(changed or left)

    def settle(self, now: datetime, *, changed: bool = False) -> tuple[Role, ...]:
        """Sign what is changed, past half its life, or by a replaced key, and what names it; return those roles."""
        self._publish_trust()
        signed: list[Role] = []
        if changed or self._due("releases", self._releases, now):
            self._sign("releases", self._releases, now)
            signed.append("releases")
        versions = {"targets.json": self.trust.targets.signed.version, "releases.json": self._releases.signed.version}
        named = {name: meta.version for name, meta in self._snapshot.signed.meta.items()}
        if named != versions or self._due("snapshot", self._snapshot, now):
            self._snapshot.signed.meta = {name: MetaFile(version) for name, version in versions.items()}
            self._sign("snapshot", self._snapshot, now)
            signed.append("snapshot")
        if "snapshot" in signed or self._due("timestamp", self._timestamp, now):
            self._timestamp.signed.snapshot_meta = MetaFile(self._snapshot.signed.version)
            self._sign("timestamp", self._timestamp, now)
            signed.append("timestamp")
        self.trust.settled()
        return tuple(signed)

    def expires(self) -> dict[Role, datetime]:
        """Return when the metadata of each role expires."""
        return {role: each.signed.expires for role, each in self._by_role().items()}

    def versions(self) -> dict[Role, int]:
        """Return the version of each role's metadata, 0 where there is none yet."""
        return {role: each.signed.version if each.signatures else 0 for role, each in self._by_role().items()}

    def metadata(self) -> dict[str, bytes]:
        """Return the current metadata by name, all roots among it, the timestamp last."""
        return {
            **self.trust.files(),
            f"metadata/{self._releases.signed.version}.releases.json": self._releases.to_bytes(),
            f"metadata/{self._snapshot.signed.version}.snapshot.json": self._snapshot.to_bytes(),
            "metadata/timestamp.json": self._timestamp.to_bytes(),
        }

    def carry(self) -> None:
        """Remember what is right now, before keys are replaced."""
        if self.signed:
            self.trust.carry([each.to_bytes() for each in (self._timestamp, self._snapshot, self._releases)])

    def _by_role(self) -> dict[Role, Metadata[Any]]:
        signed = (self.trust.root, self.trust.targets, self._releases, self._snapshot, self._timestamp)
        return dict(zip(LIFETIME, signed, strict=True))

    def _read(self) -> tuple[Metadata[Timestamp], Metadata[Snapshot], Metadata[Targets]]:
        timestamp = self._load("timestamp", "timestamp.json")
        if timestamp is None:
            return Metadata(Timestamp()), Metadata(Snapshot()), Metadata(Targets())
        snapshot = self._require("snapshot", timestamp.signed.snapshot_meta.version)
        return timestamp, snapshot, self._require("releases", snapshot.signed.meta["releases.json"].version)

    def _publish_trust(self) -> None:
        """Write what the offline keys have signed and the bucket lacks."""
        for name, data in self.trust.files().items():
            if objects.find(self.store, "releases", name) != data:
                objects.put(self.store, "releases", name, data, "application/json")

    def _due(self, role: Role, metadata: Metadata[Any], now: datetime) -> bool:
        """Say whether a role is unsigned, past half its life, or signed by a key that was replaced."""
        left = metadata.signed.expires - now
        return not metadata.signatures or left < timedelta(days=LIFETIME[role] / 2) or role in self._replaced

    def _sign(self, role: Role, metadata: Metadata[Any], now: datetime) -> None:
        """Write the role's next version."""
        if metadata.signatures:
            metadata.signed.version += 1
        metadata.signed.expires = expiry(role, now)
        metadata.sign(self._keys.signer(role, self.trust.keyid(role)))
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        objects.put(self.store, "releases", f"metadata/{name}", metadata.to_bytes(), "application/json")

    def _require(self, role: Role, version: int) -> Metadata[Any]:
        metadata = self._load(role, f"{version}.{role}.json")
        if metadata is None:
            raise ReleaseError(
                f"releases/metadata/{version}.{role}.json is missing: restore the bucket from a backup, or empty it "
                "and publish again"
            )
        return metadata

    def _load(self, role: Role, name: str) -> Metadata[Any] | None:
        data = objects.find(self.store, "releases", f"metadata/{name}")
        if data is None:
            return None
        try:
            metadata: Metadata[Any] = Metadata.from_bytes(data)
        except RepositoryError as exc:
            raise ReleaseError(f"releases/metadata/{name}: no metadata: {exc}: restore it from a backup") from exc
        if not self.trust.judges(role, metadata):
            if digest(data) not in self._carried:
                raise ReleaseError(
                    f"releases/metadata/{name}: not signed by the keys of this installation: restore the bucket, or "
                    "the folder `tuf` among the secrets, from a backup"
                )
            self._replaced.add(role)
        return metadata


def stored_name(file: TargetFile) -> str:
    """Return the name under which a target is stored: consistent snapshots put its hash before it."""
    folder, _, name = file.path.rpartition("/")
    return f"targets/{folder}/{file.hashes['sha256']}.{name}"


def _described(path: str, data: bytes) -> TargetFile:
    return TargetFile.from_data(path, data, ["sha256"])
