"""The signer: the one process that holds the authority's private key, and signs for those who prove who they are.

It is a client of the broker like any other and listens to nobody else: what it may hear is `signer.>`, what it may say
are answers. It signs for the platform the certificates that tokens hold; for a token's holder the first certificate of
that name; for the holder of a certificate the next one. Every request proves itself (`fieldloop.domain.admission`).
"""

import asyncio
import hashlib
import logging
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID
from nats.aio.msg import Msg

from fieldloop.domain.admission import (
    CURVES,
    REQUEST_BYTES,
    SHORTEST_RSA,
    TOKEN_KIND,
    TOKEN_S,
    Answer,
    Kind,
    Request,
)
from fieldloop.domain.errors import EnrolmentError, FieldloopError
from fieldloop.stores import broker
from fieldloop.stores.settings import Settings
from infra.local import roster
from infra.local.authority import LEAF_DAYS, own_subject, read_authority, sign
from infra.local.keys import private_folder
from infra.local.roster import Issued
from infra.local.stack import Spec

HEARD: Final = "signer.>"
SUBJECT_OIDS: Final = (NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)
PLATFORM: Final = own_subject("platform", "platform")

logger = logging.getLogger(__name__)

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class Subject(msgspec.Struct, frozen=True):
    """Who a certificate is for."""

    kind: str
    generation: str
    name: str

    @property
    def member(self) -> Kind:
        """The kind of device or target that it is about, be it a token's or its own."""
        return "device" if self.kind.removesuffix(TOKEN_KIND) == "device" else "target"

    def __str__(self) -> str:
        return f"{self.kind.removesuffix(TOKEN_KIND)} {self.name!r}"


def spec(settings: Settings) -> Spec:
    """Return how the signer is run."""
    ready = settings.data_dir / "run" / "signer.ready"
    return Spec(
        name="signer",
        title="Signer",
        argv=(sys.executable, "-m", "infra.local.signer"),
        env=settings.environment(),
        cwd=str(settings.root),
        after=("nats",),
        ready=f"file://{ready}",
        ready_timeout_s=60.0,
    )


class Signer:
    """Judges requests and signs what it grants."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._authority = read_authority(settings)

    def answer(self, data: bytes) -> Answer:
        """Grant a request or say why not."""
        try:
            return self._grant(data)
        except EnrolmentError as exc:
            logger.warning("refused: %s", exc)
            return Answer(refused=str(exc))
        except OSError as exc:
            logger.error("nothing was signed: %s", exc)
            return Answer(refused="it could not be written down, so nothing was signed: try again later")

    def _grant(self, data: bytes) -> Answer:
        request = _request(data)
        holder, holder_key = self._holder(request)
        subject, key = _wish(request.wish)
        wanted = _subject(subject)
        identity = roster.member(self._settings, wanted.member, wanted.name)
        if identity is None:
            raise EnrolmentError(f"{wanted} is not known, or was revoked: add it, and use the token that comes of it")
        if identity.generation != wanted.generation:
            raise EnrolmentError(f"this token or certificate of {wanted} was made void by a later one")
        life = self._allow(holder, holder_key, wanted, key, request.life_s)
        certificate = sign(self._authority, subject, key, life)
        der = certificate.public_bytes(serialization.Encoding.DER)
        if wanted.kind == wanted.member:
            self._note(wanted, key, certificate)
        logger.info("signed for %s, generation %s, by %s", wanted, wanted.generation, holder.kind)
        return Answer(der, welcome=identity.welcome if holder.kind != "platform" else None)

    def _holder(self, request: Request) -> tuple[Subject, PublicKey]:
        """Return who asks, once that is proved: by the authority's signature, the time, and the key's signature."""
        try:
            certificate = x509.load_der_x509_certificate(request.certificate)
            certificate.verify_directly_issued_by(self._authority[0])
            key = _strong(certificate.public_key())
            _verify(key, request.signature, request.wish)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as exc:
            raise EnrolmentError("it is not signed by the holder of a certificate of this installation") from exc
        now, until = datetime.now(UTC), certificate.not_valid_after_utc
        if now > until:
            raise EnrolmentError(
                f"the token or certificate it was asked with ended at {until:%Y-%m-%d %H:%M:%S} UTC: get a new token"
            )
        if certificate.subject == PLATFORM:
            return Subject("platform", "", "platform"), key
        return _subject(certificate.subject), key

    def _allow(self, holder: Subject, holder_key: PublicKey, wanted: Subject, key: PublicKey, life_s: int) -> timedelta:
        """Return for how long, or refuse."""
        if holder.kind == "platform":
            if wanted.kind == wanted.member:
                raise EnrolmentError(f"the platform makes tokens alone; {wanted} asks for its certificate itself")
            return timedelta(seconds=min(max(life_s, 1), TOKEN_S))
        if (holder.member, holder.generation, holder.name, wanted.kind) != (
            wanted.member,
            wanted.generation,
            wanted.name,
            holder.member,
        ):
            raise EnrolmentError(f"the token or certificate is of {holder}, the certificate was asked for {wanted}")
        if holder.kind == holder.member:
            self._allow_renewal(holder, holder_key, key)
        else:
            self._allow_first(wanted, key)
        return timedelta(days=LEAF_DAYS if wanted.kind == "device" else self._settings.certificate_days)

    def _allow_renewal(self, holder: Subject, holder_key: PublicKey, key: PublicKey) -> None:
        if _fingerprint(holder_key) != _fingerprint(key):
            raise EnrolmentError(f"{holder} asks for another key's certificate: a renewal is for the same key")

    def _allow_first(self, wanted: Subject, key: PublicKey) -> None:
        """A token is for one key; the same key may come again, as its answer may have been lost."""
        issued = roster.issued(self._settings, wanted.member, wanted.name)
        if issued is not None and issued.generation == wanted.generation and issued.key != _fingerprint(key):
            raise EnrolmentError(
                f"the token of {wanted} was used already, with another key: if that was not you, revoke it; "
                "then add it again"
            )

    def _note(self, wanted: Subject, key: PublicKey, certificate: x509.Certificate) -> None:
        """Write down, before anybody has it, what is issued."""
        until_us = round(certificate.not_valid_after_utc.timestamp() * 1e6)
        serial = f"{certificate.serial_number:x}"
        roster.note(
            self._settings,
            wanted.member,
            wanted.name,
            Issued(wanted.generation, _fingerprint(key), serial, until_us),
        )


def _request(data: bytes) -> Request:
    if len(data) > REQUEST_BYTES:
        raise EnrolmentError(f"the request has {len(data):,} bytes; expected at most {REQUEST_BYTES:,}")
    try:
        return msgspec.msgpack.decode(data, type=Request)
    except msgspec.MsgspecError as exc:
        raise EnrolmentError(f"not a request: {exc}") from exc


def _wish(der: bytes) -> tuple[x509.Name, PublicKey]:
    """Return subject and key of a certificate signing request that its own key has signed."""
    try:
        wish = x509.load_der_x509_csr(der)
        subject, key, signed = wish.subject, _strong(wish.public_key()), wish.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise EnrolmentError(f"not a certificate signing request: {exc}") from exc
    if not signed:
        raise EnrolmentError("the certificate signing request is not signed by its own key")
    return subject, key


def _subject(name: x509.Name) -> Subject:
    """Return who a subject names; its text is the broker's user, so it must have exactly these parts in this order."""
    if tuple(part.oid for part in name) != SUBJECT_OIDS:
        raise EnrolmentError(f"expected a subject CN=…,OU=…,O=…, got {name.rfc4514_string()!r}")
    kind, generation, holder = (str(part.value) for part in name)
    if kind.removesuffix(TOKEN_KIND) not in ("device", "target") or not roster.NAME.fullmatch(holder):
        raise EnrolmentError(f"no device or target can be called {name.rfc4514_string()!r}")
    return Subject(kind, generation, holder)


def _strong(key: object) -> PublicKey:
    """Return a key that is good enough to be certified."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= SHORTEST_RSA:
        return key
    curve = f"curve {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    what = f"RSA of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else curve
    raise EnrolmentError(f"weak key: {what}; expected ECDSA P-256 or P-384, or RSA of at least {SHORTEST_RSA:,} bits")


def _verify(key: PublicKey, signature: bytes, data: bytes) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    else:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))


def _fingerprint(key: PublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    signer = Signer(settings)
    client = await broker.connect(settings, settings.certificate("authority", "signer"), "signer", reconnects=-1)

    async def take(message: Msg) -> None:
        if message.reply:
            await message.respond(msgspec.msgpack.encode(signer.answer(message.data)))

    await client.subscribe(HEARD, cb=take)
    await client.flush()
    private_folder(settings.data_dir / "run")
    for number in (signal.SIGTERM, signal.SIGINT):  # until here one of them ends the process, as it must
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    (settings.data_dir / "run" / "signer.ready").touch()
    await stop.wait()
    await client.close()


def main() -> int:
    """Run until SIGTERM."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        asyncio.run(_run(Settings()))
    except (FieldloopError, OSError) as exc:
        logger.error("%s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
