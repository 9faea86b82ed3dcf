"""A target's side of the updater, over a copy of the mirror that a test may damage."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Timestamp

from fieldloop.domain.release import Release
from fieldloop.domain.rollout import Desired
from fieldloop.edge import updater
from fieldloop.stores import broker, releases
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import Keys, Role
from fieldloop.stores.trust import Trust

TIMESTAMP = "metadata/timestamp.json.0"


@dataclass
class Target:
    """A target's side of the updater, over a copy of the mirror that a test may damage."""

    settings: Settings
    folder: Path
    mirror: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def publish(self, release: Release) -> Desired:
        """Publish a release and take a copy of the mirror."""
        published = releases.publish(self.settings, release)
        self.mirror = asyncio.run(mirror_of(self.settings))
        return Desired(published.digest, published.manifest, 0, "test")

    def fetch(self, desired: Desired, graphs: Sequence[bytes] = ()) -> Release:
        """Fetch a release as the agent does, with these graphs from before."""
        staging = self.folder / "incoming" / desired.release
        staging.mkdir(parents=True, exist_ok=True)
        root = releases.trusted_root(self.settings)
        return updater.fetch(self.read, root, self.folder / "tuf", staging, desired, graphs)

    def read(self, key: str) -> bytes | None:
        """Read from the mirror, and remember what was asked for."""
        self.asked.append(key)
        return self.mirror.get(key)

    def sign(self, change: Callable[[Timestamp], None], key: CryptoSigner | None = None) -> None:
        """Put a changed timestamp into the mirror, signed with the install's key where no other is given."""
        metadata: Metadata[Timestamp] = Metadata.from_bytes(self.mirror[TIMESTAMP])
        change(metadata.signed)
        metadata.sign(key or self.key("timestamp"))
        self.mirror[TIMESTAMP] = metadata.to_bytes()

    def key(self, role: Role) -> CryptoSigner:
        """Return a role's key, which in these tests is the attacker's prey."""
        return Keys(self.settings).signer(role, Trust(self.settings.secrets / "tuf").keyid(role))

    def newest(self, role: str) -> Metadata[Any]:
        """Return the mirror's newest metadata of a role other than timestamp."""
        name = max((name for name in self.mirror if f".{role}.json" in name), key=version_of)
        return Metadata.from_bytes(self.mirror[name])

    def put(self, role: str, metadata: Metadata[Any], *keys: Role) -> None:
        """Sign a role's metadata with the keys of these roles, and put it into the mirror under its version."""
        metadata.signatures.clear()
        for key in keys:
            metadata.sign(self.key(key), append=True)
        self.mirror[f"metadata/{metadata.signed.version}.{role}.json.0"] = metadata.to_bytes()

    def point_at(self, role: str, version: int) -> None:
        """Have snapshot and timestamp, signed with their own keys, name a version of a role's metadata."""
        snapshot = self.newest("snapshot")
        snapshot.signed.version += 1
        snapshot.signed.meta[f"{role}.json"].version = version
        self.put("snapshot", snapshot, "snapshot")
        self.sign(lambda timestamp: name_snapshot(timestamp, snapshot.signed.version))


def name_snapshot(timestamp: Timestamp, snapshot: int) -> None:
    """Have the next timestamp name a version of the snapshot."""
    timestamp.version += 1
    timestamp.snapshot_meta.version = snapshot


def version_of(name: str) -> int:
    """Return the version in the name of a metadata file."""
    return int(name.removeprefix("metadata/").split(".")[0])


async def mirror_of(settings: Settings) -> dict[str, bytes]:
    """Return all that the mirror holds, by key."""
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        found = {}
        for subject in info.state.subjects or {}:
            message = await js.get_msg("KV_releases", subject=subject, direct=True)
            found[subject.removeprefix("$KV.releases.")] = message.data or b""
        return found
