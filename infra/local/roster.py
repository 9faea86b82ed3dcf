"""Who may join and what they were given: two small files a device or target, under `pki/roster`.

`member.json` is the operator's word: who it is and what it is told when it joins. `issued.json` is the signer's: for
which key it signed last. Taking the folder away is revocation.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fieldloop.domain.admission import Kind, Welcome
from fieldloop.domain.errors import EnrolmentError, ServiceError
from fieldloop.stores.settings import Settings
from infra.local.keys import private_folder, write_private

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a subject's token: no dots, blanks, wildcards
KINDS: Final[tuple[Kind, ...]] = ("device", "target")


class Member(msgspec.Struct, frozen=True):
    """A device or target that may join, or has joined.

    Attributes:
        generation: which enrolment of this name it is; certificates of earlier ones name another.
        token_until_us: until then its token opens the broker's door, microseconds since the epoch.
        welcome: what it is told.
    """

    generation: str
    token_until_us: int
    welcome: Welcome


class Issued(msgspec.Struct, frozen=True):
    """The last certificate that was signed for a name: generation, SHA-256 of the key, serial number, its end."""

    generation: str
    key: str
    serial: str
    until_us: int


def check_names(names: Iterable[str]) -> None:
    """Refuse a name that is not one token of a subject (and of a path).

    Raises:
        ServiceError: naming the first such name.
    """
    for name in names:
        if not NAME.fullmatch(name):
            raise ServiceError(f"name {name!r}: expected letters, digits, - and _, at most 63 of them")


def members(settings: Settings, kind: Kind) -> Iterator[tuple[str, Member]]:
    """Return everybody who may join or has joined, by name."""
    for path in sorted(_root(settings, kind).glob("*/member.json")):
        yield path.parent.name, msgspec.json.decode(path.read_bytes(), type=Member)


def member(settings: Settings, kind: Kind, name: str) -> Member | None:
    """Return one of them; None where there is none, or it was revoked."""
    try:
        return msgspec.json.decode((_root(settings, kind) / name / "member.json").read_bytes(), type=Member)
    except FileNotFoundError:
        return None


def issued(settings: Settings, kind: Kind, name: str) -> Issued | None:
    """Return what was signed last for a name."""
    try:
        return msgspec.json.decode((_root(settings, kind) / name / "issued.json").read_bytes(), type=Issued)
    except FileNotFoundError:
        return None


def joined(settings: Settings, kind: Kind, name: str) -> bool:
    """Say whether a certificate was signed for the name as it is enrolled now."""
    known, signed = member(settings, kind, name), issued(settings, kind, name)
    return known is not None and signed is not None and signed.generation == known.generation


def enter(settings: Settings, kind: Kind, name: str, entry: Member) -> None:
    """Write down who may join."""
    folder = private_folder(private_folder(_root(settings, kind)) / name)
    write_private(folder / "member.json", msgspec.json.encode(entry))


def note(settings: Settings, kind: Kind, name: str, signed: Issued) -> None:
    """Write down what was signed; nothing where the name was revoked meanwhile.

    Raises:
        EnrolmentError: it was.
    """
    try:
        write_private(_root(settings, kind) / name / "issued.json", msgspec.json.encode(signed))
    except FileNotFoundError as exc:
        raise EnrolmentError(f"{kind} {name!r} was revoked meanwhile") from exc


def strike(settings: Settings, kind: Kind, name: str) -> None:
    """Forget a name: nothing more is signed for it, and the broker's next list of users lacks it."""
    shutil.rmtree(_root(settings, kind) / name, ignore_errors=True)


def _root(settings: Settings, kind: Kind) -> Path:
    return settings.data_dir / "pki" / "roster" / kind
