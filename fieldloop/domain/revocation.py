"""Releases that were taken back: signed no longer, with the reason for people, in one small signed file."""

from collections.abc import Iterable
from typing import Final

import msgspec

from fieldloop.domain.errors import ReleaseError

REVOKED: Final = "releases/revoked.json"
LONGEST_REASON: Final = 500  # characters


class Revoked(msgspec.Struct, frozen=True):
    """A release that must run nowhere.

    Attributes:
        name: `model/version`.
        digest: of the release.
        reason: in words.
        at: when it was revoked, ISO 8601 UTC.
    """

    name: str
    digest: str
    reason: str
    at: str


def encode_revoked(entries: Iterable[Revoked]) -> bytes:
    """Return the list as JSON."""
    return msgspec.json.encode(list(entries))


def decode_revoked(data: bytes) -> tuple[Revoked, ...]:
    """Read the list.

    Raises:
        ReleaseError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=tuple[Revoked, ...])
    except msgspec.MsgspecError as exc:
        raise ReleaseError(f"{REVOKED}: not a list of revoked releases: {exc}") from exc
