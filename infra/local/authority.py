"""The installation's certificate authority: ECDSA P-256, made on the first `up`, known to nobody else.

A broker identity is a client certificate with the subject `CN=<name>,O=<kind>`.
"""

import datetime
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fieldloop.stores.settings import Certificate, CertificateKind, Settings
from infra.local.keys import private_folder, write_private

AUTHORITY_DAYS: Final = 3650
LEAF_DAYS: Final = 825
BACKDATED: Final = datetime.timedelta(minutes=5)  # clocks in the field lag


def make_authority(settings: Settings) -> None:
    """Make what is missing of the authority, the server's certificate and the platform's own."""
    folder = private_folder(settings.data_dir / "pki")
    if not (folder / "ca.pem").exists():
        _make_root(folder)
    if not server_certificate(settings).cert.exists():
        hosts = sorted({"127.0.0.1", "localhost", settings.host})
        _issue(settings, server_certificate(settings), "broker", "server", hosts)
    make_certificate(settings, "platform", "platform")


def make_certificate(settings: Settings, kind: CertificateKind, name: str) -> Certificate:
    """Make an identity's key and certificate where it has none; return their paths."""
    certificate = settings.certificate(kind, name)
    if not certificate.cert.exists():
        _issue(settings, certificate, name, kind, ())
    return certificate


def server_certificate(settings: Settings) -> Certificate:
    """Return the paths of the broker's own certificate."""
    folder = settings.data_dir / "pki" / "server"
    return Certificate(folder / "cert.pem", folder / "key.pem", settings.data_dir / "pki" / "ca.pem")


def _make_root(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("fieldloop installation", "authority")
    certificate = (
        _builder(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca-key.pem", _pem(key))
    write_private(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _issue(settings: Settings, paths: Certificate, name: str, kind: str, hosts: list[str] | tuple[()]) -> None:
    """Sign a certificate: a server's where `hosts` are given, else a client's."""
    pki = settings.data_dir / "pki"
    issuer = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    issuer_key = serialization.load_pem_private_key((pki / "ca-key.pem").read_bytes(), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)  # noqa: S101 - `_make_root` wrote it
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(_subject(name, kind), issuer.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    private_folder(paths.cert.parent.parent)
    private_folder(paths.cert.parent)
    write_private(paths.key, _pem(key))
    write_private(paths.cert, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(name: str, kind: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, kind)
    return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
