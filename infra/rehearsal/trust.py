"""What a simulated gateway believes of the repository: signatures, versions and expiry, by python-tuf's own rules.

An agent's updater runs the same rules over files; here each gateway runs them for itself in memory, on the metadata
that it fetches over its own line.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from tuf.api.exceptions import BadVersionNumberError, EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from fieldloop.domain.errors import ReleaseError

METADATA: Final = "metadata/"

Fetch = Callable[[str], Awaitable[bytes | None]]


class Trust:
    """The metadata that one gateway has verified; `kept` shares equal bytes among the gateways of a process."""

    def __init__(self, root: bytes, kept: dict[bytes, bytes]) -> None:
        self._root = root
        self._kept = kept
        self._timestamp: bytes | None = None
        self._snapshot: bytes | None = None
        self._files: dict[str, bytes] = {}  # metadata by name, which holds its version

    async def signed(self, fetch: Fetch, path: str) -> Mapping[str, TargetFile]:
        """Bring the metadata up to date and return the files that are signed together with this one, itself among them.

        Raises:
            ReleaseError: it is not signed, or a signature, a version or a date is wrong, or metadata is missing.
        """
        try:
            trusted = await self._refreshed(fetch)
            delegations = trusted.targets.delegations
            for role, _ in delegations.get_roles_for_target(path) if delegations else ():
                files = (await self._targets(trusted, fetch, role, "targets")).targets
                if path in files:
                    return files
        except RepositoryError as exc:
            raise ReleaseError(f"{path}: not trusted: {type(exc).__name__}: {exc}") from exc
        raise ReleaseError(f"{path}: not among the signed targets")

    async def _refreshed(self, fetch: Fetch) -> TrustedMetadataSet:
        """Follow the specification: roots, then timestamp, snapshot, targets."""
        trusted = TrustedMetadataSet(self._root, EnvelopeType.METADATA)
        while (root := await fetch(f"{METADATA}{trusted.root.version + 1}.root.json")) is not None:
            trusted.update_root(root)
            self._root = self._kept.setdefault(root, root)
        if self._timestamp is not None:  # against rollback
            with suppress(ExpiredMetadataError):
                trusted.update_timestamp(self._timestamp)
        timestamp = await self._require(fetch, "timestamp.json")
        try:
            trusted.update_timestamp(timestamp)
            self._timestamp = self._kept.setdefault(timestamp, timestamp)
        except EqualVersionNumberError:  # python-tuf's word for: nothing new
            pass
        if self._snapshot is not None:
            with suppress(BadVersionNumberError, ExpiredMetadataError):  # it is loaded all the same
                trusted.update_snapshot(self._snapshot, trusted=True)
        name = f"{trusted.timestamp.snapshot_meta.version}.snapshot.json"
        self._snapshot = await self._file(fetch, name)
        trusted.update_snapshot(self._snapshot)
        await self._targets(trusted, fetch, "targets", "root")
        return trusted

    async def _targets(self, trusted: TrustedMetadataSet, fetch: Fetch, role: str, parent: str) -> Targets:
        if role not in trusted:
            named = trusted.snapshot.meta.get(f"{role}.json")
            if named is None:
                raise RepositoryError(f"role {role} is delegated, but not in the snapshot")
            trusted.update_delegated_targets(await self._file(fetch, f"{named.version}.{role}.json"), role, parent)
        found = trusted[role]
        assert isinstance(found, Targets)  # noqa: S101 - as it was just put there
        return found

    async def _file(self, fetch: Fetch, name: str) -> bytes:
        """Return metadata that bears its version in its name, so that it need not come twice."""
        if name not in self._files:
            data = await self._require(fetch, name)
            role = name.partition(".")[2]
            self._files = {old: kept for old, kept in self._files.items() if old.partition(".")[2] != role}
            self._files[name] = self._kept.setdefault(data, data)
        return self._files[name]

    async def _require(self, fetch: Fetch, name: str) -> bytes:
        data = await fetch(METADATA + name)
        if data is None:
            raise ReleaseError(f"{METADATA}{name} is not in the release mirror")
        return data
