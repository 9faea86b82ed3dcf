"""Releases: a TUF repository in bucket `releases`, and its mirror in the broker.

The object store is the system of record; agents read the mirror over their one broker connection. Releases are signed
by the online key of the role `releases`, to which the offline keys have given no other path.
"""

import asyncio
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import GRAPH, MANIFEST, File, Manifest, Release, decode_manifest, release_folder
from fieldloop.domain.revocation import LONGEST_REASON, REVOKED, Revoked, decode_revoked, encode_revoked
from fieldloop.stores import mirror, objects
from fieldloop.stores.patches import patches
from fieldloop.stores.private import private_folder
from fieldloop.stores.repository import Repository
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import OFFLINE, Ask, Keys, Role
from fieldloop.stores.trust import Trust


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
    with opened(settings) as (repository, _):
        for entry in _revoked(repository):
            if entry.name == f"{manifest.model}/{manifest.version}":
                raise ReleaseError(
                    f"release {entry.name} was revoked on {entry.at[:10]}: {entry.reason}: deploy another"
                )
        former: set[str] = set()
        if not repository.holds(files):
            graphs = {name: data for name, data in release.files().items() if name.endswith(GRAPH)}
            files |= patches(repository, manifest.model, manifest.version, graphs)
            former = {path for path in repository.files if path.startswith(f"{folder}/")}
        new = repository.change(files, former - files.keys(), datetime.now(UTC))
        asyncio.run(mirror.copy(settings, repository, files))
    return Published(release.digest, f"{folder}/{MANIFEST}", new)


@dataclass(frozen=True)
class Signed:
    """A release that is signed: its name (`model/version`), its digest, and how many bytes its files have."""

    name: str
    digest: str
    bytes: int


def signed(settings: Settings) -> tuple[Signed, ...]:
    """Return all releases that are signed, by model and version.

    Raises:
        ReleaseError: the repository's metadata is not signed by this install.
        StoreError: the object store refuses.
    """
    with opened(settings) as (repository, _):
        return _signed(repository)


def signed_manifest(settings: Settings, name: str) -> bytes:
    """Return the manifest of a signed release, `model/version`; see `Repository.content` for what it raises."""
    with opened(settings) as (repository, _):
        return repository.content(f"releases/{name}/{MANIFEST}")


def revoked(settings: Settings) -> tuple[Revoked, ...]:
    """Return all releases that were revoked, oldest first; see `signed` for what it raises."""
    with opened(settings) as (repository, _):
        return _revoked(repository)


def revoke(settings: Settings, name: str, reason: str) -> Revoked:
    """Sign a release out, and mirror that: agents leave it, and it is published no more. Again, it changes nothing.

    Args:
        settings: the installation.
        name: `model/version`.
        reason: in words; agents report it.

    Raises:
        ReleaseError: there is no such release, or no reason of a sensible length.
        StoreError: object store or broker refuse.
    """
    if not 0 < len(reason) <= LONGEST_REASON:
        raise ReleaseError(f"reason: expected 1 to {LONGEST_REASON} characters, got {len(reason)}")
    now = datetime.now(UTC)
    with opened(settings) as (repository, _):
        entries = {entry.name: entry for entry in _revoked(repository)}
        if name not in entries:
            digests = {each.name: each.digest for each in _signed(repository)}
            if name not in digests:
                raise ReleaseError(f"no release {name!r}; expected one of {', '.join(digests) or 'none yet'}")
            entries[name] = Revoked(name, digests[name], reason, now.isoformat(timespec="seconds"))
        files = {REVOKED: encode_revoked(entries.values())}
        repository.change(files, [path for path in repository.files if path.startswith(f"releases/{name}/")], now)
        asyncio.run(mirror.copy(settings, repository, files))
    return entries[name]


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


def published(settings: Settings) -> tuple[Published, ...]:
    """Return all releases that the repository's bucket holds, revoked ones among them.

    Raises:
        StoreError: the object store refuses or does not answer.
    """
    folder = "targets/"
    found = []
    for key in sorted(objects.names(objects.client(settings, "releases"), "releases", f"{folder}releases/")):
        path, _, name = key.removeprefix(folder).rpartition("/")
        digest, _, rest = name.partition(".")
        if rest == MANIFEST:
            found.append(Published(digest, f"{path}/{MANIFEST}", new=False))
    return tuple(found)


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did and saw: the roles that it signed anew, and when each role's metadata expires (UTC)."""

    renewed: tuple[Role, ...]
    expires: Mapping[Role, datetime]

    def expiring(self, now: datetime, within: timedelta) -> dict[Role, datetime]:
        """Return the offline roles that expire soon: no refresh signs those anew."""
        return {role: at for role, at in self.expires.items() if role in OFFLINE and at - now < within}


def refresh(settings: Settings, now: datetime) -> Refreshed:
    """Sign the online roles anew where they are past half their life, and mirror what the mirror lacks.

    Doing it again changes nothing; a refresh that was killed is finished by the next. Before the first release there
    is nothing to refresh.

    Raises:
        ReleaseError: the repository's metadata is not signed by this install.
        StoreError: object store or broker refuse.
    """
    with opened(settings) as (repository, _):
        if not repository.signed:
            return Refreshed((), {})
        renewed = repository.settle(now)
        asyncio.run(mirror.copy(settings, repository, {}))
        return Refreshed(renewed, repository.expires())


def trusted_root(settings: Settings) -> bytes:
    """Return the root metadata that agents are given at enrolment; the install's keys are made where there are none."""
    with _locked(settings):
        return _trust(settings, Keys(settings)).root.to_bytes()


def _signed(repository: Repository) -> tuple[Signed, ...]:
    sizes: dict[str, int] = {}
    for path, file in repository.files.items():
        folder = path.rpartition("/")[0]
        sizes[folder] = sizes.get(folder, 0) + file.length
    manifests = {f: repository.files[f"{f}/{MANIFEST}"] for f in sizes if f"{f}/{MANIFEST}" in repository.files}
    found = [Signed(f.removeprefix("releases/"), m.hashes["sha256"], sizes[f]) for f, m in manifests.items()]
    return tuple(sorted(found, key=lambda each: _by_version(each.name)))


def _by_version(name: str) -> tuple[str, int]:
    model, _, version = name.rpartition("/")
    return model, int(version)


def _revoked(repository: Repository) -> tuple[Revoked, ...]:
    return decode_revoked(repository.content(REVOKED)) if REVOKED in repository.files else ()


@contextmanager
def opened(settings: Settings, ask: Ask | None = None) -> Iterator[tuple[Repository, Keys]]:
    """Open the repository for the one writer at a time, with the keys that sign it.

    Args:
        settings: the installation; its keys are made where there are none.
        ask: asks a person for the passphrase of the offline keys, where they are needed.

    Raises:
        ReleaseError: the repository's metadata is not signed by this install.
        StoreError: the object store refuses.
    """
    with _locked(settings):
        keys = Keys(settings, ask)
        yield Repository(objects.client(settings, "releases"), _trust(settings, keys), keys), keys


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    """One writer at a time: whoever signs has the keys on this machine."""
    folder = private_folder(settings.secrets / "tuf")
    with os.fdopen(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _trust(settings: Settings, keys: Keys) -> Trust:
    trust = Trust(settings.secrets / "tuf")
    if not trust.roots:
        trust.make(keys, datetime.now(UTC))
    return trust
