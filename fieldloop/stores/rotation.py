"""The signing keys of an installation over time: shown, checked, renewed, replaced, protected by a passphrase."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fieldloop.domain.errors import ReleaseError
from fieldloop.stores import mirror
from fieldloop.stores.releases import opened
from fieldloop.stores.repository import Repository
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import OFFLINE, Ask, Keys, Role

OVERDUE: Final = timedelta(days=3)  # before an online role's end: a nightly refresh leaves more than that


@dataclass(frozen=True)
class KeyState:
    """One role's key: whether it is an offline one, its id, and the metadata that it has signed.

    `version` is 0 and `expires` None where it has signed nothing yet.
    """

    role: Role
    offline: bool
    keyid: str
    version: int
    expires: datetime | None


def states(settings: Settings) -> tuple[KeyState, ...]:
    """Return each role's key and what it has signed.

    Raises:
        ReleaseError: the repository's metadata is not signed by this install.
        StoreError: the object store refuses.
    """
    with opened(settings) as (repository, _):
        return _states(repository)


def check(settings: Settings, ask: Ask | None, now: datetime, within: timedelta) -> tuple[str, ...]:
    """Open every key, and return what is wrong with them or will be within so much time; nothing where all is well."""
    with opened(settings, ask) as (repository, keys):
        wrong = [reason for role, keyid in repository.trust.key_ids() if (reason := _unusable(keys, role, keyid))]
        for state in _states(repository):
            ahead = within if state.offline else min(within, OVERDUE)
            if state.expires is not None and state.expires - now < ahead:
                remedy = "`fieldloop keys renew`" if state.offline else "run the flow *refresh*"
                wrong.append(f"{state.role} expires {state.expires:%Y-%m-%d %H:%M} UTC: {remedy}")
        return tuple(wrong)


def renew(settings: Settings, ask: Ask | None, now: datetime) -> None:
    """Sign the offline roles for another term, and publish that.

    Raises:
        ReleaseError: a key cannot be opened, or the repository's metadata is not signed by this install.
        StoreError: object store or broker refuse.
    """
    with opened(settings, ask) as (repository, keys):
        repository.trust.renew(keys, now)
        _publish(settings, repository, now)


def rotate(settings: Settings, roles: Sequence[Role], ask: Ask | None, now: datetime) -> None:
    """Replace the keys of roles, sign anew what they had signed, and publish that; the old keys' files are removed.

    Killed in between, the next refresh or publication goes on where it was.

    Raises:
        ReleaseError: an offline key that has to sign cannot be opened.
        StoreError: object store or broker refuse.
    """
    with opened(settings, ask) as (repository, keys):
        repository.carry()
        for role in roles:
            repository.trust.rotate(role, keys, now)
        following = Repository(repository.store, repository.trust, keys)
        _publish(settings, following, now)
        keys.sweep(following.trust.key_ids())


def protect(settings: Settings, passphrase: str, ask: Ask | None) -> None:
    """Encrypt the offline keys with another passphrase; see `Keys.protect`."""
    with opened(settings, ask) as (repository, keys):
        keys.protect(passphrase, repository.trust.key_ids(*OFFLINE))


def _publish(settings: Settings, repository: Repository, now: datetime) -> None:
    """Sign and mirror; before the first release there is nothing that anybody could read."""
    if repository.signed:
        repository.settle(now)
        asyncio.run(mirror.copy(settings, repository, {}))


def _states(repository: Repository) -> tuple[KeyState, ...]:
    versions, expires = repository.versions(), repository.expires()
    return tuple(
        KeyState(role, role in OFFLINE, keyid, versions[role], expires[role] if versions[role] else None)
        for role, keyid in repository.trust.key_ids()
    )


def _unusable(keys: Keys, role: Role, keyid: str) -> str | None:
    try:
        keys.signer(role, keyid)
    except ReleaseError as exc:
        return str(exc)
    return None
