"""What the offline keys have signed: the chain of roots, and the delegation of releases to an online key.

It lies among the secrets, since it must not come from the bucket that it is to judge. A version is a file; the newest
root says who may sign the rest, so that writing it is the one moment at which a rotation happens.
"""

import copy
import hashlib
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.revocation import REVOKED
from fieldloop.stores.private import private_folder, write_private
from fieldloop.stores.signing import Keys, Role

# Days until a signature expires. Those of the online roles bound how long a mirror can be held still unnoticed; a daily
# refresh renews them past half of it, so that three days without one do no harm. An agent that runs needs none of them.
LIFETIME: Final[dict[Role, int]] = {"root": 365, "targets": 365, "releases": 30, "snapshot": 14, "timestamp": 7}
PATHS: Final = ["releases/*/*/*", REVOKED]  # all that the online key of releases may sign; `*` ends at a slash

_CARRIED: Final = "carried.json"  # digests of what was right before a rotation that is not finished


class Trust:
    """The roots, oldest first, and the delegation in force, as they lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.roots: list[Metadata[Root]] = _versions(folder, "root")
        if self.roots:
            valid = [each for each in _versions(folder, "targets") if _verified(self.root, "targets", each)]
            if not valid:
                raise ReleaseError(f"{folder}: no targets metadata signed by the root's key: restore it from a backup")
            self.targets: Metadata[Targets] = valid[-1]

    @property
    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self.roots[-1]

    def keyid(self, role: Role) -> str:
        """Return the id of the key that signs for a role."""
        holder = self.targets.signed if role == "releases" else self.root.signed
        return str(holder.get_delegated_role(role).keyids[0])

    def key_ids(self, *roles: Role) -> list[tuple[Role, str]]:
        """Return roles with the ids of their keys; all where none is named."""
        return [(role, self.keyid(role)) for role in roles or LIFETIME]

    def judges(self, role: Role, metadata: Metadata[Any]) -> bool:
        """Say whether metadata is signed by the key of its role."""
        return _verified(self.targets if role == "releases" else self.root, role, metadata)

    def files(self) -> dict[str, bytes]:
        """Return what agents need of it by name in the repository, in the order in which it came to be."""
        files = {f"metadata/{root.signed.version}.root.json": root.to_bytes() for root in self.roots}
        return files | {f"metadata/{self.targets.signed.version}.targets.json": self.targets.to_bytes()}

    def carried(self) -> frozenset[str]:
        """Return digests of metadata whose keys were replaced before it could be signed anew."""
        path = self._folder / _CARRIED
        return frozenset(msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else ())

    def carry(self, files: list[bytes]) -> None:
        """Remember, before a rotation, what is right now, so that it can be signed anew whatever happens."""
        write_private(self._folder / _CARRIED, msgspec.json.encode([digest(data) for data in files]))

    def settled(self) -> None:
        """Forget what was carried: all is signed anew."""
        (self._folder / _CARRIED).unlink(missing_ok=True)

    def make(self, keys: Keys, now: datetime) -> None:
        """Make the first keys, root and delegation; killed in between, nothing counts yet."""
        private_folder(self._folder)
        signers = {role: keys.make(role) for role in LIFETIME}
        root = Root(version=1, expires=expiry("root", now), consistent_snapshot=True)
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.add_key(signers[role].public_key, role)
        delegate = DelegatedRole("releases", [], 1, terminating=True, paths=PATHS)
        delegations = Delegations({}, {"releases": delegate})
        targets = Targets(version=1, expires=expiry("targets", now), delegations=delegations)
        targets.add_key(signers["releases"].public_key, "releases")
        self._add_targets(Metadata(targets), signers["targets"])
        self._add_root(Metadata(root), signers["root"])

    def renew(self, keys: Keys, now: datetime) -> None:
        """Sign root and delegation for another term, by the same keys."""
        signers = {role: keys.signer(role, keyid) for role, keyid in self.key_ids("root", "targets")}
        self._add_targets(_next(self.targets, now), signers["targets"])
        self._add_root(_next(self.root, now), signers["root"])

    def rotate(self, role: Role, keys: Keys, now: datetime) -> None:
        """Put a new key in the place of a role's; a new root is signed by the key of before and by its own.

        Raises:
            ReleaseError: an offline key that has to sign cannot be opened.
        """
        by: Role = "targets" if role == "releases" else "root"
        authority = keys.signer(by, self.keyid(by))
        new = keys.make(role)
        document: Metadata[Any] = _next(self.targets if by == "targets" else self.root, now)
        document.signed.revoke_key(self.keyid(role), role)
        document.signed.add_key(new.public_key, role)
        if by == "targets":
            self._add_targets(document, authority)
            return
        if role == "targets":
            self._add_targets(_next(self.targets, now), new)  # counts once the root names its key
        self._add_root(document, authority, *([new] if role == "root" else []))

    def _add_root(self, root: Metadata[Root], *signers: CryptoSigner) -> None:
        self._write(root, *signers)
        self.roots.append(root)

    def _add_targets(self, targets: Metadata[Targets], *signers: CryptoSigner) -> None:
        self._write(targets, *signers)
        self.targets = targets

    def _write(self, metadata: Metadata[Any], *signers: CryptoSigner) -> None:
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        name = f"{metadata.signed.version}.{metadata.signed.type}.json"
        write_private(self._folder / name, metadata.to_bytes())


def expiry(role: Role, now: datetime) -> datetime:
    """Return when metadata of a role that is signed now expires."""
    return now.replace(microsecond=0) + timedelta(days=LIFETIME[role])


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def _next(metadata: Metadata[Any], now: datetime) -> Metadata[Any]:
    """Return the next version of metadata, unsigned."""
    following = copy.deepcopy(metadata)
    following.signed.version += 1
    following.signed.expires = expiry(metadata.signed.type, now)
    return following


def _verified(by: Metadata[Any], role: str, metadata: Metadata[Any]) -> bool:
    try:
        by.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except RepositoryError:
        return False
    return True


def _versions(folder: Path, role: str) -> list[Metadata[Any]]:
    """Return all versions of a role's metadata, oldest first.

    Raises:
        ReleaseError: a file is none.
    """
    paths = sorted(folder.glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))
    try:
        return [Metadata.from_bytes(path.read_bytes()) for path in paths]
    except RepositoryError as exc:
        raise ReleaseError(f"{folder}: {role} metadata cannot be read: {exc}: restore it from a backup") from exc
