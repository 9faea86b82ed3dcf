"""Tokens, certificates and revocation, with the real broker and signer: what is granted, what is refused."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import nats as client
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from nats.aio.client import Client
from nats.errors import Error

from fieldloop.domain.admission import Answer, Request, Token, decode_token, signer_subject
from fieldloop.domain.errors import EnrolmentError, ServiceError
from fieldloop.edge import enrol, identity
from fieldloop.edge.renewal import client_context
from fieldloop.stores import broker
from fieldloop.stores.settings import Certificate, Settings
from infra.local import roster
from infra.local.authority import make_authority
from infra.local.identities import admit_targets, enrol_targets, revoke
from infra.local.keys import make_secrets
from infra.local.signer import spec

WAIT_S = 10.0


@dataclass(frozen=True)
class Holder:
    """Somebody with a token, who may ask for other things than an agent would."""

    settings: Settings
    token: Token

    def request(self, key: CertificateIssuerPrivateKeyTypes, name: str | None = None, kind: str = "target") -> Request:
        """Return a request for a certificate of this key, under the token's name or another."""
        subject = identity.subject_of(kind, self.generation, name or self.token.name)
        wish = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        return self.signed(wish.public_bytes(serialization.Encoding.DER))

    def signed(self, wish: bytes) -> Request:
        """Return a request with these bytes in place of a wish."""
        key = serialization.load_der_private_key(self.token.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return Request(wish, self.token.certificate, key.sign(wish, ec.ECDSA(hashes.SHA256())))

    @property
    def generation(self) -> str:
        """The generation that the token's certificate names."""
        return identity.generation_of(x509.load_der_x509_certificate(self.token.certificate))

    def ask(self, request: Request | bytes) -> Answer:
        """Send something to the signer, as the platform, which may publish anywhere: the signer itself must judge."""
        data = request if isinstance(request, bytes) else msgspec.msgpack.encode(request)

        async def send() -> bytes:
            async with broker.platform(self.settings) as (client, _):
                return (await client.request(signer_subject("target", self.token.name), data, timeout=WAIT_S)).data

        return msgspec.msgpack.decode(asyncio.run(send()), type=Answer)


@pytest.fixture
def holder(nats: Settings, request: pytest.FixtureRequest) -> Holder:
    """A token for a target named after the test."""
    name = request.node.name.split("[")[0][-63:]
    return Holder(nats, decode_token(admit_targets(nats, {name: {"dev": "toy"}})[name]))


def test_a_token_is_used_once_but_its_answer_may_be_lost(holder: Holder) -> None:
    """The same key may come again; another one is told that the token was used."""
    key = identity.make_key()
    first, again = holder.ask(holder.request(key)), holder.ask(holder.request(key))
    assert first.certificate
    assert again.certificate
    assert first.welcome == again.welcome
    assert "used already, with another key" in holder.ask(holder.request(identity.make_key())).refused


def test_a_joiner_killed_before_its_certificate_came_goes_on(
    holder: Holder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key waits on the disk, closed to others; a second try with the same token uses it and leaves one file."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    text = holder.token.encode()
    with monkeypatch.context() as patch:
        patch.setattr(enrol, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(enrol.join(text, tmp_path))
    waiting = list(tmp_path.iterdir())
    assert [path.stat().st_mode & 0o777 for path in waiting] == [0o600]
    key = waiting[0].read_bytes()
    asyncio.run(enrol.join(text, tmp_path))
    assert key in (tmp_path / "identity.pem").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent.json", "ca.pem", "identity.pem", "root.json"]
    assert (tmp_path / "identity.pem").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("wished_s", [None, 86_400])
def test_a_token_is_good_for_an_hour_at_most(nats: Settings, wished_s: int | None) -> None:
    """Whatever is asked for."""
    wish = {} if wished_s is None else {"life_s": wished_s}
    token = decode_token(admit_targets(nats, {f"hour-{wished_s}": {}}, **wish)[f"hour-{wished_s}"])
    left_s = x509.load_der_x509_certificate(token.certificate).not_valid_after_utc.timestamp() - time.time()
    assert 3500 < left_s <= 3600


def test_a_token_that_has_ended_is_refused(nats: Settings, tmp_path: Path) -> None:
    """By the broker, and told when it ended."""
    text = admit_targets(nats, {"ended": {}}, life_s=1)["ended"]
    until = x509.load_der_x509_certificate(decode_token(text).certificate).not_valid_after_utc.timestamp()
    while time.time() < until + 0.1:
        time.sleep(0.05)
    with pytest.raises(ServiceError, match=r"the token could be used until 20.* UTC: ask for another one"):
        asyncio.run(enrol.join(text, tmp_path))
    answer = Holder(nats, decode_token(text)).ask(Holder(nats, decode_token(text)).request(identity.make_key()))
    assert "ended at" in answer.refused


def test_a_later_token_makes_the_earlier_void(nats: Settings, tmp_path: Path) -> None:
    """A lost token is replaced by adding the target again."""
    earlier, later = (admit_targets(nats, {"twice": {}})["twice"] for _ in range(2))
    with pytest.raises(ServiceError, match="made void by a later one"):
        asyncio.run(enrol.join(earlier, tmp_path))
    asyncio.run(enrol.join(later, tmp_path))
    assert admit_targets(nats, {"twice": {}}) == {}


@pytest.mark.parametrize("whose", ["token", "broker"])
def test_a_forged_token_is_refused(
    holder: Holder, free_settings: Callable[..., Settings], tmp_path: Path, whose: str
) -> None:
    """One that another authority signed, by the broker; one with another authority's broker in it, by the joiner."""
    other = free_settings()
    make_secrets(other)
    make_authority(other)
    own = other.certificate("platform", "platform")
    forger = identity.read_certificate(own.cert.read_bytes(), "").public_bytes(serialization.Encoding.DER)
    key = identity.der_key(identity.read_key(own.key.read_bytes(), ""))
    ca = identity.read_certificate(own.ca.read_bytes(), "").public_bytes(serialization.Encoding.DER)
    changes = {"certificate": forger, "key": key} if whose == "token" else {"authority": ca}
    token = msgspec.structs.replace(holder.token, **changes)
    with pytest.raises(ServiceError, match=r"certificate|forged"):
        asyncio.run(enrol.join(token.encode(), tmp_path))
    if whose == "token":
        refused = Holder(holder.settings, token).ask(Holder(holder.settings, token).request(identity.make_key()))
        assert "not signed by the holder of a certificate of this installation" in refused.refused


@pytest.mark.parametrize("text", ["", "hello", "fieldloop1.", "fieldloop1.AAAA", "fieldloop1.!"])
def test_what_is_no_token_is_refused(text: str, tmp_path: Path) -> None:
    """Before anything is sent."""
    with pytest.raises(EnrolmentError, match=r"expected a token|damaged or cut off"):
        asyncio.run(enrol.join(text, tmp_path))


def test_a_token_cut_off_is_refused(holder: Holder, tmp_path: Path) -> None:
    """As a terminal might have done."""
    with pytest.raises(EnrolmentError, match="damaged or cut off"):
        asyncio.run(enrol.join(holder.token.encode()[:-5], tmp_path))


def test_a_token_is_for_its_own_name_and_kind(holder: Holder) -> None:
    """Not for another target that may join, not for a device of that name, not for another token."""
    admit_targets(holder.settings, {"victim": {}})
    victim = roster.member(holder.settings, "target", "victim")
    assert victim is not None
    key = identity.make_key()
    subject = identity.subject_of("target", victim.generation, "victim")
    wish = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    stolen = holder.ask(holder.signed(wish.public_bytes(serialization.Encoding.DER)))
    assert f"is of target {holder.token.name!r}, the certificate was asked for target 'victim'" in stolen.refused
    assert holder.ask(holder.request(key, kind="device")).refused
    assert holder.ask(holder.request(key, kind="target-token")).refused
    assert "can be called" in holder.ask(holder.request(key, kind="platform", name="platform")).refused


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "weak key: RSA of 1024 bits"),  # noqa: S505 - weak is meant
        (lambda: ec.generate_private_key(ec.SECP224R1()), "weak key: curve secp224r1"),
    ],
)
def test_a_weak_key_is_refused(
    holder: Holder, make: Callable[[], CertificateIssuerPrivateKeyTypes], reason: str
) -> None:
    """And told what is expected."""
    assert reason in holder.ask(holder.request(make())).refused


def test_requests_that_are_none_are_refused(holder: Holder) -> None:
    """Too long, no request, no wish, signed by another, a wish that its own key did not sign."""
    good = holder.request(identity.make_key())
    assert "bytes; expected at most 8,192" in holder.ask(bytes(10_000)).refused
    assert "not a request" in holder.ask(b"\x00").refused
    assert "not a certificate signing request" in holder.ask(holder.signed(b"wish")).refused
    assert "not signed by the holder" in holder.ask(msgspec.structs.replace(good, signature=b"x")).refused
    torn = bytearray(good.wish)
    torn[-1] ^= 1
    assert holder.ask(holder.signed(bytes(torn))).refused


def test_nothing_of_a_wish_but_name_and_key_is_certified(holder: Holder) -> None:
    """Other names in it, by which a broker could know its holder, are left out."""
    key = identity.make_key()
    names = x509.SubjectAlternativeName([x509.RFC822Name("platform@platform"), x509.DNSName("platform")])
    subject = identity.subject_of("target", holder.generation, holder.token.name)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=False)
    wish = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    der = wish.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    certificate = x509.load_der_x509_certificate(holder.ask(holder.signed(der)).certificate)
    assert certificate.subject == subject
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_the_platform_cannot_get_a_targets_certificate(holder: Holder) -> None:
    """It makes tokens, no more."""
    own = holder.settings.certificate("platform", "platform")
    certificate = identity.read_certificate(own.cert.read_bytes(), "")
    key = identity.read_key(own.key.read_bytes(), "")
    subject = identity.subject_of("target", holder.generation, holder.token.name)
    assert "makes tokens alone" in holder.ask(identity.make_request(subject, key, certificate, key)).refused


def test_what_a_token_opens_is_the_signers_door_alone(holder: Holder, tmp_path: Path) -> None:
    """With its certificate, everything else at the broker is refused."""
    file = tmp_path / "door.pem"
    key = serialization.load_der_private_key(holder.token.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    file.write_bytes(identity.pem_identity(key, x509.load_der_x509_certificate(holder.token.certificate)))
    door = Certificate(file, file, holder.settings.data_dir / "pki" / "ca.pem")
    name = holder.token.name
    forbidden = ["signer.target.victim", f"predictions.{name}", f"$KV.reported.{name}", "$JS.API.STREAM.NAMES"]

    async def act() -> list[str]:
        opened = await _connect(holder.settings, door)
        refused = []
        for subject in forbidden:
            await opened.publish(subject, b"")
            refused.append(await _refusal(opened))
        for subject in (">", "$KV.desired.>", "_INBOX.>", f"_INBOX.{name}.>"):
            await opened.subscribe(subject)
            refused.append(await _refusal(opened))
        await opened.close()
        return refused

    assert all("permissions violation" in text for text in asyncio.run(act()))


def test_revocation_cuts_the_connection_and_outlives_a_new_token(nats: Settings, tmp_path: Path) -> None:
    """What a revoked target holds opens nothing, not after it was enrolled anew either; the new certificate does."""
    enrol_targets(nats, {"lost": {}})
    thief = _copy(nats.certificate("target", "lost"), tmp_path)

    async def hold() -> None:
        held = await _connect(nats, thief)
        await asyncio.to_thread(revoke, nats, "target", ["lost"])
        async with asyncio.timeout(WAIT_S):
            while held.is_connected:
                await asyncio.sleep(0.01)
        await held.close()

    asyncio.run(hold())
    with pytest.raises(Error, match="Authorization Violation"):
        asyncio.run(_connect(nats, thief))
    enrol_targets(nats, {"lost": {}})
    with pytest.raises(Error, match="Authorization Violation"):
        asyncio.run(_connect(nats, thief))
    assert "made void by a later one" in _renewal(nats, thief, "lost").refused
    assert _renewal(nats, nats.certificate("target", "lost"), "lost").certificate
    revoke(nats, "target", ["lost"])
    assert "is not known, or was revoked" in _renewal(nats, thief, "lost").refused


def test_a_renewal_is_for_the_same_key(nats: Settings) -> None:
    """Who would change it enrols anew."""
    enrol_targets(nats, {"renewed": {}})
    own = nats.certificate("target", "renewed")
    certificate, key = _read(own)
    holder = Holder(nats, Token("target", "renewed", "", b"", b"", b""))
    other = identity.make_request(certificate.subject, identity.make_key(), certificate, key)
    assert "a renewal is for the same key" in holder.ask(other).refused


def test_nobody_but_the_signer_needs_the_authoritys_key(nats: Settings) -> None:
    """Once it runs, tokens, certificates and renewals come without that file."""
    key = nats.data_dir / "pki" / "ca-key.pem"
    hidden = key.rename(key.with_name("elsewhere"))
    try:
        enrol_targets(nats, {"keyless": {}})
        assert _renewal(nats, nats.certificate("target", "keyless"), "keyless").certificate
    finally:
        hidden.rename(key)


def test_a_signal_ends_a_signer_that_waits_for_its_broker(nats: Settings) -> None:
    """What accepts its connection and says nothing holds it in no way that SIGTERM does not end."""
    with socket.create_server((nats.host, 0)) as silent:
        signer = spec(nats.model_copy(update={"nats_port": silent.getsockname()[1]}))
        process = subprocess.Popen(signer.argv, env=os.environ | signer.env, cwd=signer.cwd)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            process.terminate()
            try:
                assert process.wait(10) != 0
            finally:
                process.kill()


def _renewal(settings: Settings, own: Certificate, name: str) -> Answer:
    certificate, key = _read(own)
    holder = Holder(settings, Token("target", name, "", b"", b"", b""))
    return holder.ask(identity.make_request(certificate.subject, key, certificate, key))


def _read(own: Certificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    pem = own.cert.read_bytes()
    assert client_context(own.cert, own.ca).cert_store_stats()["x509_ca"] == 1
    return identity.read_certificate(pem, ""), identity.read_key(pem, "")


def _copy(own: Certificate, folder: Path) -> Certificate:
    file = folder / "identity.pem"
    file.write_bytes(own.cert.read_bytes())
    return Certificate(file, file, own.ca)


async def _connect(settings: Settings, own: Certificate) -> Client:
    """Return a connection that is not made anew."""
    context = client_context(own.cert, own.ca)
    return await client.connect(settings.nats_endpoint, tls=context, allow_reconnect=False, error_cb=_quiet)


async def _quiet(_: Exception) -> None:
    return


async def _refusal(opened: Client) -> str:
    """Wait for the broker's refusal of what was just tried."""
    await opened.flush()
    async with asyncio.timeout(WAIT_S):
        while opened.last_error is None:
            await asyncio.sleep(0.01)
    error, opened._err = str(opened.last_error), None
    return error.lower()
