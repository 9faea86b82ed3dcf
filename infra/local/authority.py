"""The installation's certificate authority: ECDSA P-256, made on the first `up`, known to nobody else.

A broker identity is a client certificate with the subject `CN=<name>,O=<kind>`; of those who enrol, devices and
targets, `CN=<name>,OU=<generation>,O=<kind>`. What the installation itself shows, `up` makes here; whatever is signed
later is signed by the signer, which alone reads the key then.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fieldloop.edge.identity import pem_key
from fieldloop.stores.settings import Certificate, CertificateKind, Settings
from infra.local.keys import private_folder, write_private

AUTHORITY_DAYS: Final = 3650
LEAF_DAYS: Final = 825
BACKDATED: Final = datetime.timedelta(minutes=5)  # clocks in the field lag
OLD_AT: Final = 2 / 3  # of its life, after which `up` makes a certificate of the installation's own anew


def make_authority(settings: Settings) -> None:
    """Make what is missing of the authority and of the installation's own certificates, and what is getting old."""
    folder = private_folder(settings.data_dir / "pki")
    if not (folder / "ca.pem").exists():
        _make_root(folder)
    own = server_certificate(settings)
    if _is_old(own):
        _issue(settings, own, own_subject("broker", "server"), sorted({"127.0.0.1", "localhost", settings.host}))
    make_certificate(settings, "platform", "platform")
    make_certificate(settings, "authority", "signer")
    make_certificate(settings, "authority", "probe")


def make_certificate(settings: Settings, kind: CertificateKind, name: str) -> Certificate:
    """Make key and certificate of the installation's own where it has none that is young; return their paths."""
    certificate = settings.certificate(kind, name)
    if _is_old(certificate):
        _issue(settings, certificate, own_subject(name, kind), ())
    return certificate


def sign(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    life: datetime.timedelta,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Return a certificate: a server's where `hosts` are given, else a client's."""
    issuer, issuer_key = authority
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(subject, issuer.subject, key, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def read_authority(settings: Settings) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the authority's certificate and its private key."""
    pki = settings.data_dir / "pki"
    key = serialization.load_pem_private_key((pki / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - `_make_root` wrote it
    return x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes()), key


def server_certificate(settings: Settings) -> Certificate:
    """Return the paths of the broker's own certificate."""
    folder = settings.data_dir / "pki" / "server"
    return Certificate(folder / "cert.pem", folder / "key.pem", settings.data_dir / "pki" / "ca.pem")


def _make_root(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = own_subject("fieldloop installation", "authority")
    certificate = (
        _builder(name, name, key.public_key(), datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca-key.pem", pem_key(key))
    write_private(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))


def _is_old(paths: Certificate) -> bool:
    """Say whether a certificate is missing, or has lived most of its life."""
    if not paths.cert.exists():
        return True
    certificate = x509.load_pem_x509_certificate(paths.cert.read_bytes())
    since, until = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return datetime.datetime.now(datetime.UTC) > since + OLD_AT * (until - since)


def _issue(settings: Settings, paths: Certificate, subject: x509.Name, hosts: Sequence[str]) -> None:
    """Make a key and its certificate; the certificate, which says that both are there, comes last."""
    key = ec.generate_private_key(ec.SECP256R1())
    life = datetime.timedelta(days=LEAF_DAYS)
    certificate = sign(read_authority(settings), subject, key.public_key(), life, hosts)
    private_folder(paths.cert.parent.parent)
    private_folder(paths.cert.parent)
    paths.cert.unlink(missing_ok=True)
    write_private(paths.key, pem_key(key))
    write_private(paths.cert, certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: CertificatePublicKeyTypes, life: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - min(BACKDATED, life / 10))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def own_subject(name: str, kind: str) -> x509.Name:
    """Return the subject of a certificate of the installation's own."""
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
