"""The keys that sign the release repository: offline ones, encrypted and in a folder of their own, and online ones.

A key's file bears its role and the start of its id. Which keys count is said by the signed metadata alone, so that a
rotation that was cut off leaves no more than a file to which nothing refers.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from fieldloop.domain.errors import ReleaseError
from fieldloop.stores.private import private_folder, write_private
from fieldloop.stores.settings import Settings

Role = Literal["root", "targets", "releases", "snapshot", "timestamp"]
ROLES: Final[tuple[Role, ...]] = ("root", "targets", "releases", "snapshot", "timestamp")
OFFLINE: Final[tuple[Role, ...]] = ("root", "targets")  # what signs without a person never needs these

_MADE: Final = "passphrase"  # the file that is made where no passphrase is given
SHORTEST: Final = 12  # characters of a person's passphrase
_ID_CHARACTERS: Final = 16  # of a key's id, in the name of its file
_SCRYPT: Final = {"n": 1 << 15, "r": 8, "p": 1, "maxmem": 1 << 26}  # 32 MB, about a tenth of a second

Ask = Callable[[str], str]  # asks a person for the passphrase, under this prompt


class Keys:
    """The signing keys of one installation."""

    def __init__(self, settings: Settings, ask: Ask | None = None) -> None:
        self.offline = settings.offline_keys
        self._online = settings.secrets / "tuf"
        self._file = settings.keys_passphrase_file
        self._ask = ask
        self._passphrase: str | None = None

    def make(self, role: Role) -> CryptoSigner:
        """Make a role's next key; it counts once metadata names it.

        Raises:
            ReleaseError: there is no passphrase to protect it with.
        """
        key = Ed25519PrivateKey.generate()
        signer = CryptoSigner(key)
        private_folder(self._folder(role))
        self._write(role, signer.public_key.keyid, key)
        return signer

    def signer(self, role: Role, keyid: str) -> CryptoSigner:
        """Return the signer with this key.

        Raises:
            ReleaseError: its file is missing, or the passphrase does not open it.
        """
        return CryptoSigner(self._read(role, keyid))

    def protect(self, passphrase: str, in_force: Collection[tuple[Role, str]]) -> None:
        """Encrypt the offline keys with another passphrase, and remove the file that was made for them.

        Killed in between, some keys have the new one already; done again with the same, it goes on.

        Raises:
            ReleaseError: the passphrase is too short, or the one of before does not open a key.
        """
        if len(passphrase) < SHORTEST:
            raise ReleaseError(f"passphrase: expected at least {SHORTEST} characters, got {len(passphrase)}")
        keys = [(role, keyid, self._read_with_either(role, keyid, passphrase)) for role, keyid in in_force]
        before, self._passphrase = self._passphrase, passphrase
        for role, keyid, key in keys:
            self._write(role, keyid, key)
        if before != passphrase:
            (self.offline / _MADE).unlink(missing_ok=True)

    def sweep(self, in_force: Collection[tuple[Role, str]]) -> None:
        """Remove the files of keys that no longer count."""
        wanted = {self._path(role, keyid) for role, keyid in in_force}
        for role in ROLES:
            for path in self._folder(role).glob(f"{role}-*.pem"):
                if path not in wanted:
                    path.unlink()

    def unprotected(self) -> bool:
        """Say whether the passphrase lies beside the keys that it protects."""
        return (self.offline / _MADE).exists()

    def _folder(self, role: Role) -> Path:
        return self.offline if role in OFFLINE else self._online

    def _path(self, role: Role, keyid: str) -> Path:
        return self._folder(role) / f"{role}-{keyid[:_ID_CHARACTERS]}.pem"

    def _write(self, role: Role, keyid: str, key: Ed25519PrivateKey) -> None:
        locked = BestAvailableEncryption(self._stretched(keyid)) if role in OFFLINE else NoEncryption()
        write_private(self._path(role, keyid), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))

    def _read(self, role: Role, keyid: str) -> Ed25519PrivateKey:
        path = self._path(role, keyid)
        try:
            pem = path.read_bytes()
            key = load_pem_private_key(pem, self._stretched(keyid) if role in OFFLINE else None)
        except FileNotFoundError as exc:
            hint = " or set FIELDLOOP_KEYS_DIR to the folder that has it" if role in OFFLINE else ""
            raise ReleaseError(f"{path}: the {role} key is not there: bring it back from a backup{hint}") from exc
        except ValueError as exc:
            raise ReleaseError(f"{path}: the passphrase does not open the {role} key") from exc
        if not isinstance(key, Ed25519PrivateKey) or CryptoSigner(key).public_key.keyid != keyid:
            raise ReleaseError(f"{path}: expected the {role} key {keyid}, got another: bring it back from a backup")
        return key

    def _read_with_either(self, role: Role, keyid: str, following: str) -> Ed25519PrivateKey:
        """Read a key with the passphrase of before, or with the following one where that failed."""
        try:
            return self._read(role, keyid)
        except ReleaseError:
            before, self._passphrase = self._passphrase, following
            try:
                return self._read(role, keyid)
            finally:
                self._passphrase = before

    def _stretched(self, keyid: str) -> bytes:
        """Return what encrypts a key: PEM's own 2,048 rounds are few against somebody who guesses passphrases."""
        if self._passphrase is None:
            self._passphrase = self._known_passphrase()
        return hashlib.scrypt(self._passphrase.encode(), salt=keyid.encode(), dklen=32, **_SCRYPT).hex().encode()

    def _known_passphrase(self) -> str:
        """Return the passphrase: from the given file, the one that was made, a person, or made now for the first key.

        Raises:
            ReleaseError: there is none.
        """
        made = self.offline / _MADE
        for path in (self._file, made):
            if path is not None:
                with suppress(FileNotFoundError):
                    return path.read_text().rstrip("\n")
        if self._file is not None:
            raise ReleaseError(f"FIELDLOOP_KEYS_PASSPHRASE_FILE: there is no file {self._file}")
        if not any(self.offline.glob("*.pem")):
            write_private(made, secrets.token_hex(32).encode())
            return made.read_text()
        if self._ask is None:
            raise ReleaseError(
                f"the offline keys in {self.offline} are protected: run this at a terminal, or set "
                "FIELDLOOP_KEYS_PASSPHRASE_FILE to a file that holds the passphrase"
            )
        return self._ask(f"passphrase of the keys in {self.offline}")
