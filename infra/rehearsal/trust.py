"""What a simulated gateway believes of the repository: signatures, versions and expiry, by the rules of TUF's client.

An agent's updater runs python-tuf's client over files; here each gateway follows the same workflow for itself, in
memory and over its own line, on python-tuf's metadata: https://theupdateframework.github.io/specification/latest/, 5.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final, TypeVar

from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from fieldloop.domain.errors import ReleaseError

METADATA: Final = "metadata/"

Fetch = Callable[[str], Awaitable[bytes | None]]
T = TypeVar("T", Root, Timestamp, Snapshot, Targets)


class Trust:
    """The metadata that one gateway has verified; `kept` shares equal metadata among the gateways of a process."""

    def __init__(self, root: bytes, kept: dict[bytes, Signed]) -> None:
        """Begin with the root that came with enrolment.

        Raises:
            RepositoryError: it is none, or not signed by itself.
        """
        self._kept = kept
        first = _parsed(Root, root)
        self._root = self._verified(Root, root, first.signed, Root.type)
        self._timestamp: Timestamp | None = None
        self._snapshot: Snapshot | None = None
        self._targets: dict[str, tuple[Root | Targets, Targets]] = {}  # by role, with who delegated to it

    async def signed(self, fetch: Fetch, path: str) -> Mapping[str, TargetFile]:
        """Bring the metadata up to date and return the files that are signed together with this one, itself among them.

        Raises:
            ReleaseError: it is not signed, or a signature, a version or a date is wrong, or metadata is missing.
        """
        try:
            await self._take_roots(fetch)
            timestamp = await self._newest_timestamp(fetch)
            snapshot = await self._newest_snapshot(fetch, timestamp)
            targets = await self._newest_targets(fetch, snapshot, Targets.type, self._root)
            delegations = targets.delegations
            for role, _ in delegations.get_roles_for_target(path) if delegations else ():
                files = (await self._newest_targets(fetch, snapshot, role, targets)).targets
                if path in files:
                    return files
        except RepositoryError as exc:
            raise ReleaseError(f"{path}: not trusted: {type(exc).__name__}: {exc}") from exc
        raise ReleaseError(f"{path}: not among the signed targets")

    async def _take_roots(self, fetch: Fetch) -> None:
        """Follow the chain of roots; each is signed by the one before and by itself."""
        while (data := await fetch(f"{METADATA}{self._root.version + 1}.root.json")) is not None:
            new = self._verified(Root, data, self._root, Root.type)
            self._verified(Root, data, new, Root.type)
            _require_version(Root.type, new, self._root.version + 1)
            online = (Timestamp.type, Snapshot.type)
            if any(new.roles[role].keyids != self._root.roles[role].keyids for role in online):
                self._timestamp = self._snapshot = None  # who had the old key may have signed any version
            self._root = new
        _require_fresh(Root.type, self._root)

    async def _newest_timestamp(self, fetch: Fetch) -> Timestamp:
        data = await _require(fetch, "timestamp.json")
        new, old = self._verified(Timestamp, data, self._root, Timestamp.type), self._timestamp
        if old is not None:
            _refuse_older(Timestamp.type, new.version, old.version)
            _refuse_older(Snapshot.type, new.snapshot_meta.version, old.snapshot_meta.version)
        if old is None or new.version > old.version:
            self._timestamp = old = new
        _require_fresh(Timestamp.type, old)
        return old

    async def _newest_snapshot(self, fetch: Fetch, timestamp: Timestamp) -> Snapshot:
        meta, old = timestamp.snapshot_meta, self._snapshot
        if old is None or old.version != meta.version:
            data = await _require(fetch, f"{meta.version}.snapshot.json")
            meta.verify_length_and_hashes(data)
            new = self._verified(Snapshot, data, self._root, Snapshot.type)
            _require_version(Snapshot.type, new, meta.version)
            for name, info in old.meta.items() if old else ():
                if name not in new.meta:
                    raise RepositoryError(f"snapshot: {name} is gone")
                _refuse_older(name, new.meta[name].version, info.version)
            self._snapshot = old = new
        _require_fresh(Snapshot.type, old)
        return old

    async def _newest_targets(self, fetch: Fetch, snapshot: Snapshot, role: str, by: Root | Targets) -> Targets:
        meta = snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise RepositoryError(f"role {role} is delegated, but not in the snapshot")
        delegator, found = self._targets.get(role, (None, None))
        if found is None or delegator is not by or found.version != meta.version:
            data = await _require(fetch, f"{meta.version}.{role}.json")
            meta.verify_length_and_hashes(data)
            found = self._verified(Targets, data, by, role)
            _require_version(role, found, meta.version)
            self._targets[role] = by, found
        _require_fresh(role, found)
        return found

    def _verified(self, kind: type[T], data: bytes, by: Root | Targets, role: str) -> T:
        """Return metadata that is signed by the keys of its role."""
        metadata = _parsed(kind, data)
        by.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        kept = self._kept.setdefault(data, metadata.signed)
        assert isinstance(kept, kind)  # noqa: S101 - equal bytes are equal metadata
        return kept


def _parsed(kind: type[T], data: bytes) -> Metadata[T]:
    metadata = Metadata[T].from_bytes(data)
    if not isinstance(metadata.signed, kind):
        raise RepositoryError(f"expected {kind.type} metadata, got {metadata.signed.type}")
    return metadata


def _require_version(role: str, signed: Signed, version: int) -> None:
    if signed.version != version:
        raise BadVersionNumberError(f"{role}: expected version {version}, got {signed.version}")


def _refuse_older(name: str, version: int, known: int) -> None:
    if version < known:
        raise BadVersionNumberError(f"{name}: expected version {known} or a newer one, got {version}")


def _require_fresh(role: str, signed: Signed) -> None:
    if signed.is_expired(datetime.now(UTC)):
        raise ExpiredMetadataError(f"{role}: expired {signed.expires}")


async def _require(fetch: Fetch, name: str) -> bytes:
    data = await fetch(METADATA + name)
    if data is None:
        raise ReleaseError(f"{METADATA}{name} is not in the release mirror")
    return data
