"""Who may speak to the broker: one user a client certificate, each with the least rights, written for NATS to read.

The users lie in a file of their own beside `nats.conf`, which includes it; SIGHUP makes the running server read it
again. Who is removed loses certificate and user; the broker ends the connection.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import urlsplit

from fieldloop.domain.errors import ServiceError
from fieldloop.stores.settings import Certificate, CertificateKind, Settings
from infra.local.authority import make_certificate
from infra.local.keys import write_private
from infra.local.stack import stack_status

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")  # a subject's token: no dots, blanks, wildcards
ACCEPT_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.05


class Rule(TypedDict, total=False):
    """Subjects that are allowed or denied, as NATS writes them."""

    allow: list[str]
    deny: list[str]


class User(TypedDict, total=False):
    """One user of NATS's configuration."""

    user: str
    permissions: dict[str, Rule]
    allowed_connection_types: list[str]


def enrol_devices(settings: Settings, devices: Sequence[str]) -> None:
    """Give each device a certificate and the right to publish its own readings, and nothing else.

    Raises:
        ServiceError: a name cannot be a token of a subject, or the running broker does not take it up.
    """
    _enrol(settings, "device", devices)


def enrol_targets(settings: Settings, targets: Sequence[str]) -> None:
    """Give each target a certificate and an agent's rights.

    Raises:
        ServiceError: a name cannot be a token of a subject, or the running broker does not take it up.
    """
    _enrol(settings, "target", targets)


def remove_targets(settings: Settings, targets: Sequence[str]) -> None:
    """Take away targets' certificates and rights; connections that they hold are ended.

    Raises:
        ServiceError: a name cannot be a token of a subject.
    """
    check_names(targets)
    for name in targets:
        shutil.rmtree(settings.certificate("target", name).cert.parent, ignore_errors=True)
        shutil.rmtree(settings.data_dir / "agents" / name, ignore_errors=True)
    pid = _broker(settings)
    if write_users(settings) and settings.nats_url is None and pid is not None:
        os.kill(pid, signal.SIGHUP)


def check_names(names: Iterable[str]) -> None:
    """Refuse a name that is not one token of a subject (and of a path).

    Raises:
        ServiceError: naming the first such name.
    """
    for name in names:
        if not NAME.fullmatch(name):
            raise ServiceError(f"name {name!r}: expected letters, digits, - and _, at most 63 of them")


def write_users(settings: Settings) -> bool:
    """Write the users file from the certificates that there are; return whether it changed."""
    users = [user for kind in ("platform", "device", "target") for user in _users(settings, kind)]
    path = users_file(settings)
    data = f"users = {json.dumps(users, indent=1)}\n".encode()  # NATS reads JSON
    if path.exists() and path.read_bytes() == data:
        return False
    write_private(path, data)
    return True


def users_file(settings: Settings) -> Path:
    """Return the path of the file that `nats.conf` includes."""
    return settings.data_dir / "nats-users.conf"


def _enrol(settings: Settings, kind: CertificateKind, names: Sequence[str]) -> None:
    check_names(names)
    certificates = [make_certificate(settings, kind, name) for name in names]
    if write_users(settings) and settings.nats_url is None:
        _reload(settings, kind, certificates)


def _users(settings: Settings, kind: CertificateKind) -> Iterable[User]:
    folder = settings.data_dir / "pki" / kind
    names = sorted(path.parent.name for path in folder.glob("*/cert.pem"))
    return (_user(kind, name) for name in names)


def _user(kind: CertificateKind, name: str) -> User:
    user: User = {"user": f"CN={name},O={kind}"}
    if kind == "device":
        user["permissions"] = {"publish": {"allow": [f"devices.{name}.readings"]}, "subscribe": {"deny": [">"]}}
        user["allowed_connection_types"] = ["MQTT"]
    if kind == "target":
        user["permissions"] = {"publish": {"allow": _agent_publishes(name)}, "subscribe": {"allow": _agent_hears(name)}}
        user["allowed_connection_types"] = ["STANDARD"]
    return user


def _agent_publishes(name: str) -> list[str]:
    return [
        "$JS.API.DIRECT.GET.KV_releases.>",
        f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{name}",
        f"$KV.reported.{name}",
        f"predictions.{name}",
        f"alerts.{name}",
        f"$JS.API.DIRECT.GET.predictions.predictions.{name}",  # its own last ones, so that it sends none twice
        f"$JS.API.DIRECT.GET.alerts.alerts.{name}",
        f"$JS.API.CONSUMER.MSG.NEXT.readings.{name}",
        f"$JS.ACK.readings.{name}.>",
    ]


def _agent_hears(name: str) -> list[str]:
    return [f"_INBOX.{name}.>", f"$KV.desired.{name}"]


def _reload(settings: Settings, kind: CertificateKind, certificates: Sequence[Certificate]) -> None:
    """Have the running broker read its users again, and wait until it takes the newest; a stopped one needs nothing."""
    pid = _broker(settings)
    if pid is None or not certificates:
        return
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + ACCEPT_TIMEOUT_S
    for certificate in certificates:
        while not _accepted(settings, kind, certificate):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"the broker does not accept {certificate.cert.parent.name!r} {ACCEPT_TIMEOUT_S:.0f} s after its "
                    f"enrolment; see {settings.data_dir / 'logs' / 'nats.log'}"
                )
            time.sleep(POLL_S)


def _broker(settings: Settings) -> int | None:
    """Return the process id of the installation's own broker, where it runs."""
    state = stack_status(settings, "platform")
    services = state.services if state else []
    return next((service.pid for service in services if service.name == "nats"), None)


def _accepted(settings: Settings, kind: CertificateKind, certificate: Certificate) -> bool:
    """Connect once with a certificate: over MQTT as a device, over NATS as a target."""
    context = ssl.create_default_context(cafile=certificate.ca)
    context.load_cert_chain(certificate.cert, certificate.key)
    try:
        return _mqtt_accepts(settings, context) if kind == "device" else _nats_accepts(settings, context)
    except OSError:
        return False


def _nats_accepts(settings: Settings, context: ssl.SSLContext) -> bool:
    """Say CONNECT and PING, hope for PONG: https://docs.nats.io/reference/reference-protocols/nats-protocol."""
    url = urlsplit(settings.nats_endpoint)
    with socket.create_connection((url.hostname or "", url.port or 4222), timeout=ACCEPT_TIMEOUT_S) as plain:
        while not plain.recv(4096).endswith(b"\r\n"):  # INFO, in the clear
            pass
        with context.wrap_socket(plain, server_hostname=url.hostname) as secure:
            secure.sendall(b'CONNECT {"verbose":false,"tls_required":true}\r\nPING\r\n')
            answer = b""
            while chunk := secure.recv(4096):
                answer += chunk
                if b"PONG" in answer or b"-ERR" in answer:
                    break
            return b"PONG" in answer


def _mqtt_accepts(settings: Settings, context: ssl.SSLContext) -> bool:
    """Send CONNECT with a clean session, hope for CONNACK 0: MQTT 3.1.1, sections 3.1 and 3.2."""
    url = urlsplit(settings.mqtt_endpoint)
    name = b"fieldloop-enrolment-%d" % os.getpid()
    body = b"\x00\x04MQTT\x04\x02\x00\x05" + len(name).to_bytes(2, "big") + name
    with (
        socket.create_connection((url.hostname or "", url.port or 8883), timeout=ACCEPT_TIMEOUT_S) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as secure,
    ):
        secure.sendall(b"\x10" + bytes([len(body)]) + body)
        return secure.recv(4) == b"\x20\x02\x00\x00"
