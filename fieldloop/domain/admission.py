"""How somebody becomes known to the broker: the token that an operator hands out, and what signer and joiner say.

A token holds a certificate that is good for an hour and for one thing: asking the signer for the certificate of one
name. Every request is proved by itself, by a certificate of the authority and a signature: the signer believes no
connection.
"""

import base64
import binascii
import zlib
from typing import Final, Literal

import msgspec

from fieldloop.domain.errors import EnrolmentError

Kind = Literal["device", "target"]

TOKEN_KIND: Final = "-token"  # noqa: S105 - what is appended to a kind in the subject of a token's certificate
TOKEN_S: Final = 3600  # how long a token can be used
REQUEST_BYTES: Final = 8192  # of a whole request, at most: an RSA key of 4,096 bits takes 2,500
PREFIX: Final = "fieldloop1."
SHORTEST_RSA: Final = 2048  # bits
CURVES: Final = ("secp256r1", "secp384r1")


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the joiner needs to reach and to authenticate the installation, and to be taken for who it is to be.

    Attributes:
        kind: what joins.
        name: its name.
        broker: URL of the broker's NATS listener.
        authority: the installation's certificate authority, DER: whoever shows no certificate of its is not the broker.
        certificate: DER; names kind, name and generation.
        key: its private key, DER (PKCS #8).
    """

    kind: Kind
    name: str
    broker: str
    authority: bytes
    certificate: bytes
    key: bytes

    def encode(self) -> str:
        """Return the token as text without blanks, about 1,200 characters."""
        packed = zlib.compress(msgspec.msgpack.encode(self), 9)
        return PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """Read a token as it was handed out.

    Raises:
        EnrolmentError: it is no token, or a piece of it is missing or changed.
    """
    text = "".join(text.split())  # a terminal may have broken the line
    if not text.startswith(PREFIX):
        raise EnrolmentError(f"expected a token that starts with {PREFIX!r}, as `fieldloop target add` prints it")
    try:
        body = text.removeprefix(PREFIX)
        packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(zlib.decompress(packed), type=Token)
    except (binascii.Error, zlib.error, msgspec.MsgspecError, ValueError) as exc:
        raise EnrolmentError("the token is damaged or cut off: copy all of it, or ask for another one") from exc


class Welcome(msgspec.Struct, frozen=True):
    """What a joiner is told with its first certificate.

    Attributes:
        broker: URL of the listener that it is to use.
        devices: of a target: profile name by device.
        trusted_root: of a target: TUF root metadata.
    """

    broker: str
    devices: dict[str, str] = {}
    trusted_root: bytes = b""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody asks of the signer.

    Attributes:
        wish: certificate signing request, DER; its subject is the wanted certificate's, extensions count for nothing.
        certificate: DER: who asks.
        signature: over `wish`, by the key of `certificate`.
        life_s: seconds that the certificate is wanted for; only of a token's, and at most `TOKEN_S`.
    """

    wish: bytes
    certificate: bytes
    signature: bytes
    life_s: int = TOKEN_S


class Answer(msgspec.Struct, frozen=True):
    """What the signer answers: a certificate (DER), or why there is none."""

    certificate: bytes = b""
    refused: str = ""
    welcome: Welcome | None = None


def signer_subject(kind: Kind, name: str) -> str:
    """Return the subject under which the signer hears requests for a name."""
    return f"signer.{kind}.{name}"
