"""`fieldloop-agent enrol` and `renew`: how a gateway or a device comes by its certificate, and by the next one.

Enrolling: read the token, make a key, ask the signer over a connection that trusts the token's authority alone, write
the folder. Killed anywhere, the same token gives the same folder: the key waits beside until its certificate is here.
"""

import asyncio
import getpass
import hashlib
import os
import ssl
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fieldloop.domain.admission import TOKEN_KIND, Token, Welcome, decode_token
from fieldloop.domain.enrolment import AgentConfig, decode_config
from fieldloop.domain.errors import EnrolmentError, ServiceError
from fieldloop.edge import files, identity
from fieldloop.edge import link as nats
from fieldloop.edge.renewal import connect

IDENTITY: Final = "identity.pem"
AUTHORITY: Final = "ca.pem"
ROOT: Final = "root.json"
CONFIG: Final = "agent.json"


def ask_token() -> str:
    """Return the token from the terminal, where it is not shown, or from standard input; never from an argument."""
    return getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.read()


async def join(text: str, folder: Path) -> str:
    """Use a token; return what to do next, in a person's words.

    Args:
        text: the token.
        folder: of the identity; made where it is not there, then closed to others.

    Raises:
        EnrolmentError: the token or the request is refused.
        ServiceError: broker or signer do not answer.
    """
    token = decode_token(text)
    if not folder.exists():
        files.make_folder(folder)
        folder.chmod(0o700)
    pending = folder / f".key-{hashlib.sha256(token.certificate).hexdigest()[:16]}.pem"
    key = _pending_key(pending)
    certificate, welcome = await _enrol(token, key)
    _write(folder, token, key, certificate, welcome)
    for leftover in folder.glob(".key-*.pem"):
        files.remove(leftover)
    return _next(folder, token, welcome)


async def renew(path: Path) -> None:
    """Replace the certificate of an `agent.json` by a new one for the same key.

    Raises:
        EnrolmentError: the signer refuses, or what is here cannot be used.
        ServiceError: broker or signer do not answer.
    """
    config, folder = decode_config(path.read_bytes(), str(path)), path.parent
    file, ca = folder / config.identity, folder / config.ca
    held = file.read_bytes()
    key, certificate = identity.read_key(held, str(file)), identity.read_certificate(held, str(file))
    request = identity.make_request(certificate.subject, key, certificate, key)
    link = await connect(config, folder, f"{config.target} renewal")
    try:
        answer = await identity.ask(link, "target", config.target, request)
    finally:
        link.close()
    authority = identity.read_certificate(ca.read_bytes(), str(ca))
    fresh = identity.accept(answer.certificate, key, certificate.subject, authority)
    files.write_private(file, identity.pem_identity(key, fresh))


def _pending_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the key that this token was tried with before, or a new one that is on the disk already."""
    held = files.read_or_none(path)
    if held is not None:
        return identity.read_key(held, str(path))
    key = identity.make_key()
    files.write_private(path, identity.pem_key(key))
    return key


async def _enrol(token: Token, key: ec.EllipticCurvePrivateKey) -> tuple[x509.Certificate, Welcome]:
    """Ask for the first certificate with the token's own."""
    try:
        holder = x509.load_der_x509_certificate(token.certificate)
        authority = x509.load_der_x509_certificate(token.authority)
        holder_key = serialization.load_der_private_key(token.key, None)
    except (ValueError, TypeError) as exc:
        raise EnrolmentError(f"the token is not of this platform: {exc}; ask for another one") from exc
    if not isinstance(holder_key, ec.EllipticCurvePrivateKey):
        raise EnrolmentError("the token is not of this platform: its key is of another kind; ask for another one")
    subject = identity.subject_of(token.kind, identity.generation_of(holder), token.name)
    request = identity.make_request(subject, key, holder, holder_key)
    inbox = nats.own_inbox(f"{token.name}{TOKEN_KIND}")
    try:
        link = await nats.connect(token.broker, f"{token.name} enrolment", inbox, _token_context(token, holder_key))
    except ServiceError as exc:
        raise ServiceError(f"{exc}{_excuse(exc, holder)}") from exc
    try:
        answer = await identity.ask(link, token.kind, token.name, request)
    finally:
        link.close()
    if answer.welcome is None:
        raise EnrolmentError("the signer's answer lacks what a joiner is told: is it of another version?")
    return identity.accept(answer.certificate, key, subject, authority), answer.welcome


def _token_context(token: Token, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    """Trust the token's authority alone, and show the token's certificate; OpenSSL wants it in a file for that."""
    context = ssl.create_default_context(cadata=token.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.NamedTemporaryFile() as file:  # 0600
        file.write(identity.pem_key(key) + ssl.DER_cert_to_PEM_cert(token.certificate).encode())
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _excuse(exc: ServiceError, holder: x509.Certificate) -> str:
    """Say why a broker may refuse a token: it says less itself."""
    until = holder.not_valid_after_utc
    if until < datetime.now(UTC):
        return f"; the token could be used until {until:%Y-%m-%d %H:%M:%S} UTC: ask for another one"
    if "not yet valid" in str(exc) or "expired" in str(exc):
        return f"; this machine's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: set it, then try again"
    if any(word in str(exc).lower() for word in ("certificate", "alert", "refuses", "eof", "lost")):
        return "; the token is forged, has ended, or was made void by a later one: ask for another one"
    return ""


def _write(
    folder: Path, token: Token, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, welcome: Welcome
) -> None:
    """Write the folder; the identity, which an agent cannot start without, comes last."""
    files.write_private(folder / AUTHORITY, ssl.DER_cert_to_PEM_cert(token.authority).encode())
    if token.kind == "target":
        files.write_private(folder / ROOT, welcome.trusted_root)
        config = AgentConfig(token.name, welcome.devices, welcome.broker, IDENTITY, AUTHORITY, ROOT, "state")
        files.write_private(folder / CONFIG, msgspec.json.format(msgspec.json.encode(config), indent=2))
    files.write_private(folder / IDENTITY, identity.pem_identity(key, certificate))


def _next(folder: Path, token: Token, welcome: Welcome) -> str:
    if token.kind == "target":
        return f"target {token.name} is enrolled; start its agent: fieldloop-agent --config {folder / CONFIG}"
    return (
        f"device {token.name} is enrolled: devices/{token.name}/readings at {welcome.broker}, "
        f"certificate and key in {folder / IDENTITY}, authority in {folder / AUTHORITY}"
    )


def run_enrol(folder: Path) -> None:
    """Enrol into a folder, by the token that comes over standard input.

    Raises:
        FieldloopError: it is refused, or cannot be reached.
    """
    print(asyncio.run(join(ask_token(), Path(os.path.abspath(folder)))))
