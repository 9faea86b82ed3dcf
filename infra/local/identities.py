"""Who may speak to the broker: one user a client certificate, each with the least rights, written for NATS to read.

The users lie in a file of their own beside `nats.conf`, which includes it; SIGHUP makes the running server read it
again. Who is revoked loses the user; the broker ends the connection. Certificates come by tokens (docs/adr/0027).
"""

import asyncio
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypedDict

import nats.errors
from cryptography.hazmat.primitives import serialization

from fieldloop.domain.admission import TOKEN_KIND, TOKEN_S, Kind, Token, Welcome, signer_subject
from fieldloop.domain.enrolment import NOTICE
from fieldloop.domain.errors import ServiceError
from fieldloop.edge import enrol, identity
from fieldloop.stores import broker, releases
from fieldloop.stores.settings import Settings
from infra.local import roster
from infra.local.keys import private_folder, write_private
from infra.local.roster import check_names
from infra.local.stack import stack_status

ACCEPT_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02


class Rule(TypedDict, total=False):
    """Subjects that are allowed or denied, as NATS writes them."""

    allow: list[str]
    deny: list[str]


class User(TypedDict, total=False):
    """One user of NATS's configuration."""

    user: str
    permissions: dict[str, Rule]
    allowed_connection_types: list[str]


def admit_devices(settings: Settings, devices: Sequence[str], life_s: int = TOKEN_S) -> dict[str, str]:
    """Let devices join, each to publish its own readings and nothing else; return a token for each that has not yet.

    Raises:
        ServiceError: a name cannot be a token of a subject, or broker or signer do not take it up.
    """
    welcome = Welcome(settings.mqtt_endpoint)
    return _admit(settings, "device", dict.fromkeys(devices, welcome), life_s)


def admit_targets(
    settings: Settings, targets: Mapping[str, Mapping[str, str]], life_s: int = TOKEN_S
) -> dict[str, str]:
    """Let targets join, each with an agent's rights; return a token for each that has not yet.

    Args:
        settings: the installation.
        targets: by name: profile name by device.
        life_s: seconds that the tokens can be used, at most `TOKEN_S`.

    Raises:
        ServiceError: a name cannot be a token of a subject, or broker or signer do not take it up.
    """
    root = releases.trusted_root(settings)
    welcomes = {name: Welcome(settings.nats_endpoint, dict(devices), root) for name, devices in targets.items()}
    return _admit(settings, "target", welcomes, life_s)


def enrol_devices(settings: Settings, devices: Sequence[str]) -> None:
    """Let devices join, and join for them on this machine: for simulated ones, and those that are set up here.

    Raises:
        ServiceError: see `admit_devices`.
        EnrolmentError: the signer refuses.
    """
    _join_here(settings, "device", admit_devices(settings, devices))


def enrol_targets(settings: Settings, targets: Mapping[str, Mapping[str, str]]) -> None:
    """Let targets join, and join for them: their agents run on this machine, from `agents/<name>`.

    Raises:
        ServiceError: see `admit_targets`.
        EnrolmentError: the signer refuses.
    """
    _join_here(settings, "target", admit_targets(settings, targets))


def revoke(settings: Settings, kind: Kind, names: Sequence[str]) -> None:
    """Have broker and signer refuse whatever these hold; connections that they hold are ended.

    Raises:
        ServiceError: a name cannot be a token of a subject, or the running broker does not take it up.
    """
    check_names(names)
    with _roster(settings):
        for name in names:
            roster.strike(settings, kind, name)
        _publish_users(settings)
    for name in names:
        shutil.rmtree(settings.identity_folder(kind, name), ignore_errors=True)


def write_users(settings: Settings) -> str:
    """Write the users file where it has changed; return the mark by which the probe knows it."""
    users = list(_users(settings))
    mark = hashlib.sha256(json.dumps(users).encode()).hexdigest()
    path = users_file(settings)
    data = f"users = {json.dumps([*users, _probe(mark)], indent=1)}\n".encode()  # NATS reads JSON
    if not path.exists() or path.read_bytes() != data:
        write_private(path, data)
    return mark


def users_file(settings: Settings) -> Path:
    """Return the path of the file that `nats.conf` includes."""
    return settings.data_dir / "nats-users.conf"


def _admit(settings: Settings, kind: Kind, welcomes: Mapping[str, Welcome], life_s: int) -> dict[str, str]:
    check_names(welcomes)
    with _roster(settings):
        open_names = [name for name in welcomes if not roster.joined(settings, kind, name)]
        until_us = round((time.time() + life_s) * 1e6)
        for name in open_names:
            entry = roster.Member(secrets.token_hex(4), until_us, welcomes[name])
            roster.enter(settings, kind, name, entry)
        _publish_users(settings)
    return asyncio.run(_tokens(settings, kind, open_names, life_s)) if open_names else {}


async def _tokens(settings: Settings, kind: Kind, names: Sequence[str], life_s: int) -> dict[str, str]:
    """Have the signer certify a key for each name; what it holds of a token is nothing."""
    own = settings.certificate("platform", "platform")
    holder = identity.read_certificate(own.cert.read_bytes(), str(own.cert))
    holder_key = identity.read_key(own.key.read_bytes(), str(own.key))
    authority = identity.read_certificate(own.ca.read_bytes(), str(own.ca)).public_bytes(serialization.Encoding.DER)
    tokens = {}
    async with broker.platform(settings) as (client, _):
        for name in names:
            entry = roster.member(settings, kind, name)
            generation = entry.generation if entry else ""
            key = identity.make_key()
            subject = identity.subject_of(kind + TOKEN_KIND, generation, name)
            request = identity.make_request(subject, key, holder, holder_key, life_s=life_s)
            try:
                message = await client.request(
                    signer_subject(kind, name), identity.encode(request), timeout=identity.REQUEST_S
                )
            except (nats.errors.Error, TimeoutError) as exc:
                raise ServiceError(
                    f"no token for {kind} {name!r}: the signer does not answer ({exc or type(exc).__name__}); "
                    "`fieldloop status` shows whether it runs"
                ) from exc
            answer = identity.decode(message.data)
            token = Token(kind, name, settings.nats_endpoint, authority, answer.certificate, identity.der_key(key))
            tokens[name] = token.encode()
    return tokens


def _join_here(settings: Settings, kind: Kind, tokens: Mapping[str, str]) -> None:
    async def join() -> None:
        for name, token in tokens.items():
            folder = settings.identity_folder(kind, name)
            private_folder(folder.parent)
            await enrol.join(token, folder)

    asyncio.run(join())


@contextmanager
def _roster(settings: Settings) -> Iterator[None]:
    """One writer at a time: who lists the users has seen all members."""
    lock = os.open(private_folder(settings.data_dir / "pki"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _users(settings: Settings) -> Iterator[User]:
    yield {"user": "CN=platform,O=platform"}
    yield _user("CN=signer,O=authority", publishes=["_INBOX.>"], hears=["signer.>"])
    now_us = time.time() * 1e6
    for kind in roster.KINDS:
        for name, entry in roster.members(settings, kind):
            own = f"CN={name},OU={entry.generation},O={kind}"
            if kind == "device":
                yield _device(own, name)
            else:
                yield _user(own, _agent_publishes(name), _agent_hears(name))
            if entry.token_until_us > now_us:
                door = f"CN={name},OU={entry.generation},O={kind}{TOKEN_KIND}"
                yield _user(door, [signer_subject(kind, name)], [f"_INBOX.{name}{TOKEN_KIND}.>"])


def _user(user: str, publishes: list[str], hears: list[str]) -> User:
    rights = {"publish": Rule(allow=publishes), "subscribe": Rule(allow=hears)}
    return {"user": user, "permissions": rights, "allowed_connection_types": ["STANDARD"]}


def _device(user: str, name: str) -> User:
    rights = {"publish": Rule(allow=[broker.entrance(f"devices.{name}.readings")]), "subscribe": Rule(deny=[">"])}
    return {"user": user, "permissions": rights, "allowed_connection_types": ["MQTT"]}


def _probe(mark: str) -> User:
    """A user that can ask for its own rights: they hold the mark of the list of users that the broker has read."""
    return _user("CN=probe,O=authority", ["$SYS.REQ.USER.INFO"], ["_INBOX.>", f"users.{mark}"])


def _agent_publishes(name: str) -> list[str]:
    return [
        "$JS.API.DIRECT.GET.KV_releases.>",
        f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.{name}",
        *(broker.entrance(f"{own}.{name}") for own in ("$KV.reported", "predictions", "alerts")),
        f"$JS.API.DIRECT.GET.predictions.predictions.{name}",  # its own last ones, so that it sends none twice
        f"$JS.API.DIRECT.GET.alerts.alerts.{name}",
        f"$JS.API.CONSUMER.MSG.NEXT.readings.{name}",
        f"$JS.ACK.readings.{name}.>",
        signer_subject("target", name),  # its next certificate
    ]


def _agent_hears(name: str) -> list[str]:
    return [f"_INBOX.{name}.>", f"{NOTICE}.$KV.desired.{name}"]


def _publish_users(settings: Settings) -> None:
    """Write the users, have the running broker read them, and wait until it has; a stopped one needs nothing."""
    mark, pid = write_users(settings), _broker(settings)
    if pid is not None and settings.nats_url is None and not asyncio.run(_has_read(settings, mark, pid)):
        raise ServiceError(
            f"the broker has not taken up {users_file(settings)} in {ACCEPT_TIMEOUT_S:.0f} s; "
            f"see {settings.data_dir / 'logs' / 'nats.log'}"
        )


async def _has_read(settings: Settings, mark: str, pid: int) -> bool:
    """Tell the broker to read its users again, unless it has these already; say whether it comes to have them."""
    told, deadline = False, time.monotonic() + ACCEPT_TIMEOUT_S
    client = await broker.connect(settings, settings.certificate("authority", "probe"), "probe")
    try:
        while time.monotonic() < deadline:
            info = await client.request("$SYS.REQ.USER.INFO", b"", timeout=ACCEPT_TIMEOUT_S)
            if f"users.{mark}".encode() in info.data:
                return True
            if not told:
                os.kill(pid, signal.SIGHUP)
                told = True
            await asyncio.sleep(POLL_S)
    except (nats.errors.Error, TimeoutError):
        return False
    finally:
        await client.close()
    return False


def _broker(settings: Settings) -> int | None:
    """Return the process id of the installation's own broker, where it runs."""
    state = stack_status(settings, "platform")
    services = state.services if state else []
    return next((service.pid for service in services if service.name == "nats"), None)
