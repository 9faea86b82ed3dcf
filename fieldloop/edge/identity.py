"""The agent's own key and certificate: made, asked for, checked, kept in one file that is replaced as a whole.

The key is made here and leaves in no message; what leaves is a certificate signing request. Only short processes import
this, `fieldloop-agent enrol` and `renew`: the library beneath it would cost an agent 10 MB (docs/adr/0021).
"""

from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fieldloop.domain.admission import Answer, Kind, Request, signer_subject
from fieldloop.domain.errors import EnrolmentError
from fieldloop.edge import validity
from fieldloop.edge.link import Link

REQUEST_S: Final = 10.0  # an answer of the signer


def make_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key: ECDSA P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def der_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as DER (PKCS #8), not encrypted."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a PEM file.

    Raises:
        EnrolmentError: there is none that an agent could have made.
    """
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError) as exc:
        raise EnrolmentError(f"{where}: no private key: {exc}; enrol again with a new token") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EnrolmentError(f"{where}: expected an elliptic curve's key; enrol again with a new token")
    return key


def read_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Return the certificate of a PEM file.

    Raises:
        EnrolmentError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as exc:
        raise EnrolmentError(f"{where}: no certificate: {exc}; enrol again with a new token") from exc


def make_request(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    holder: x509.Certificate,
    holder_key: ec.EllipticCurvePrivateKey,
    **options: int,
) -> Request:
    """Return a request for a certificate of `key`, made by the holder of a certificate."""
    wish = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    wanted = wish.public_bytes(serialization.Encoding.DER)
    signature = holder_key.sign(wanted, ec.ECDSA(hashes.SHA256()))
    return Request(wanted, holder.public_bytes(serialization.Encoding.DER), signature, **options)


async def ask(link: Link, kind: Kind, name: str, request: Request) -> Answer:
    """Send a request to the signer.

    Raises:
        ServiceError: it does not answer.
        EnrolmentError: it refuses; says why.
    """
    message = await link.request(signer_subject(kind, name), encode(request), REQUEST_S)
    return decode(message.data)


def encode(request: Request) -> bytes:
    """Return a request as it is sent."""
    return msgspec.msgpack.encode(request)


def decode(data: bytes) -> Answer:
    """Read an answer of the signer's.

    Raises:
        EnrolmentError: it refuses; says why.
    """
    try:
        answer = msgspec.msgpack.decode(data, type=Answer)
    except msgspec.MsgspecError as exc:
        raise EnrolmentError(f"the signer's answer cannot be read: {exc}") from exc
    if answer.refused:
        raise EnrolmentError(f"the signer refuses: {answer.refused}")
    return answer


def accept(der: bytes, key: ec.EllipticCurvePrivateKey, subject: x509.Name, ca: x509.Certificate) -> x509.Certificate:
    """Return a certificate that was issued, if it is what was asked for. This machine's clock has no say in it.

    Raises:
        EnrolmentError: it is for another key or name, or of another authority.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as exc:
        raise EnrolmentError("what came is no certificate of the installation's authority") from exc
    if certificate.public_key() != key.public_key() or certificate.subject != subject:
        raise EnrolmentError(f"the certificate that came is for {certificate.subject.rfc4514_string()}, or another key")
    return certificate


def pem_identity(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    """Return the file that holds key and certificate, headed by the line that `validity.read` reads."""
    head = validity.line(certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return head + pem_key(key) + certificate.public_bytes(serialization.Encoding.PEM)


def subject_of(kind: str, generation: str, name: str) -> x509.Name:
    """Return a certificate's subject; the broker's user is its text, `CN=<name>,OU=<generation>,O=<kind>`."""
    parts = ((NameOID.ORGANIZATION_NAME, kind), (NameOID.ORGANIZATIONAL_UNIT_NAME, generation))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in (*parts, (NameOID.COMMON_NAME, name))])


def generation_of(certificate: x509.Certificate) -> str:
    """Return the generation that a certificate belongs to: each enrolment of a name begins another one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(found[0].value) if found else ""
