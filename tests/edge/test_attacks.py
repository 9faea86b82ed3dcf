"""Attacks on updates, and on who is who, against an agent at work: each is refused, none takes the model down."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import nats.errors
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from securesystemslib.signer import CryptoSigner

from fieldloop.domain.release import CHUNK_BYTES, Release
from fieldloop.domain.rollout import Desired, Reported
from fieldloop.stores import broker, releases
from fieldloop.stores.settings import Settings
from infra.local.identities import enrol_devices
from tests.edge.mirror import TIMESTAMP, Target, mirror_of, name_snapshot, version_of
from tests.edge.targets import Gateway, enrol, make_release, payload, poll

MODEL = "victim"
FIRST, EACH = 10, 4  # steps that the device sends at first, and after each attack
WAIT_S = 10.0


@dataclass
class Victim:
    """A gateway that runs a sound release, and the mirror from which it is fed."""

    gateway: Gateway
    target: Target
    sound: Release
    running: Desired  # the order of the sound release
    old: dict[str, bytes]  # the mirror as it was before the sound release
    version: int = 2
    steps: int = 0
    rows: int = 0
    held: dict[str, bytes] = field(default_factory=dict)  # the mirror as it was before the last release

    def publish(self) -> Desired:
        """Publish another release, and take a copy of the mirror before and behind it."""
        self.version += 1
        self.held = asyncio.run(mirror_of(self.gateway.settings))
        return self.target.publish(make_release(model=MODEL, version=self.version, bias=float(self.version)))

    def swap(self, before: dict[str, bytes], after: dict[str, bytes]) -> None:
        """Have the mirror hold one thing in place of another, as somebody could who has taken the broker over."""

        async def write() -> None:
            async with broker.platform(self.gateway.settings) as (_, js):
                for key in before.keys() - after.keys():
                    await js.purge_stream("KV_releases", subject=f"$KV.releases.{key}")
                for key, data in after.items():
                    if before.get(key) != data:
                        await js.publish(f"$KV.releases.{key}", data)

        asyncio.run(write())

    def asked(self, wanted: Desired) -> Reported:
        """Ask for a release anew; return the report that answers this order."""
        order = msgspec.structs.replace(wanted, issued_us=time.time_ns() // 1000)
        self.gateway.order(order)
        return self.gateway.await_report(lambda r: r.answers_us == order.issued_us and (r.refused or r.error is None))

    def scores_on(self, steps: int = EACH) -> None:
        """Send readings of the device, and see each window predicted by the sound release."""
        self.gateway.send([payload(range(self.steps, self.steps + steps))])
        self.steps += steps
        self.rows = self.steps - FIRST // 2 + 1  # the first windows are not whole, the last step is open
        assert len(self.gateway.await_rows(self.rows)) == self.rows
        assert {message.release for message in self.gateway.predictions()} == {self.sound.digest}


@pytest.fixture(scope="module")
def victim(install: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A gateway at work; what an attack has changed is mended behind it."""
    gateway, sound = enrol(install, "gw-victim"), make_release(model=MODEL, version=2)
    releases.publish(install, make_release(model=MODEL, bias=1.0))
    old = asyncio.run(mirror_of(install))
    target = Target(install, tmp_path_factory.mktemp("victim"))
    made = Victim(gateway, target, sound, target.publish(sound), old)
    gateway.start()
    made.asked(made.running)
    made.scores_on(FIRST)
    yield made
    gateway.stop()


def _roll_back(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    """Rollback: all is as it was before the release that runs, rightly signed then."""
    return victim.old


def _freeze(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    """Freeze: nothing is forged, and nothing new comes through."""
    return victim.held


def _expire(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    victim.target.sign(lambda timestamp: setattr(timestamp, "expires", datetime.now(UTC) - timedelta(seconds=1)))
    return victim.target.mirror


def _mix(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    """Mix and match: a role's metadata of before under the name of its newest."""
    found = sorted((name for name in mirror if ".releases.json" in name), key=version_of)
    return mirror | {found[-1]: mirror[found[-2]]}


def _tamper(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    key = _graph(victim, mirror)
    return mirror | {key: mirror[key][:-1] + bytes([mirror[key][-1] ^ 1])}


def _forge(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    victim.target.sign(lambda _: None, CryptoSigner.generate_ed25519())
    return victim.target.mirror


def _endless(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    """Endless data: of a file of the release."""
    stem = _graph(victim, mirror).removesuffix(".0")
    return mirror | {f"{stem}.{chunk}": bytes(CHUNK_BYTES) for chunk in range(4)}


def _endless_metadata(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    return mirror | {TIMESTAMP: bytes(CHUNK_BYTES)}


def _steal(victim: Victim, mirror: dict[str, bytes]) -> dict[str, bytes]:
    """Stolen keys of snapshot and timestamp: the list of releases is signed with these."""
    metadata = victim.target.newest("releases")
    metadata.signed.version += 1
    victim.target.put("releases", metadata, "snapshot", "timestamp")
    snapshot = victim.target.newest("snapshot")
    snapshot.signed.version += 1
    snapshot.signed.meta["releases.json"].version = metadata.signed.version
    victim.target.put("snapshot", snapshot, "snapshot")
    victim.target.sign(lambda timestamp: name_snapshot(timestamp, snapshot.signed.version))
    return victim.target.mirror


@pytest.mark.parametrize(
    ("attack", "says"),
    [
        (_roll_back, "BadVersionNumber"),
        (_freeze, "not among the signed targets"),
        (_expire, "Expired"),
        (_mix, "not trusted"),
        (_tamper, "not trusted"),
        (_forge, "UnsignedMetadata"),
        (_endless, "longer than"),
        (_endless_metadata, "longer than"),
        (_steal, "UnsignedMetadata"),  # the last one: versions that it has run ahead with are what this target knows
    ],
)
def test_an_attack_on_updates_is_refused_and_the_model_goes_on(
    victim: Victim, attack: Callable[[Victim, dict[str, bytes]], dict[str, bytes]], says: str
) -> None:
    """The order is followed no further, the report says why, and every window is predicted."""
    with victim.gateway.still():  # else it may have seen what is published before the attacker holds that back
        wanted, sound = victim.publish(), dict(victim.target.mirror)
        attacked = attack(victim, dict(sound))
        assert attacked != sound
        victim.swap(sound, attacked)
    report = victim.asked(wanted)
    victim.scores_on()
    victim.asked(victim.running)  # else it would follow the order as soon as the mirror is mended
    victim.swap(attacked, sound)
    assert report.refused
    assert says in (report.error or "")
    assert report.running is not None
    assert report.running.release == victim.sound.digest


def test_a_device_that_poses_as_another_is_not_scored(victim: Victim) -> None:
    """By topic, user and client identifier; its own readings are of no device that this target serves."""
    settings, own = victim.gateway.settings, "poser"
    enrol_devices(settings, [own])
    certificate = settings.certificate("device", own)
    poser = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=victim.gateway.device)
    poser.username_pw_set(f"CN={victim.gateway.device},O=device")
    poser.tls_set(str(certificate.ca), str(certificate.cert), str(certificate.key))
    poser.connect(settings.host, settings.mqtt_port)
    poser.loop_start()
    forged = payload(range(victim.steps, victim.steps + 100))
    for device in (victim.gateway.device, own):
        poser.publish(f"devices/{device}/readings", forged, qos=1).wait_for_publish(WAIT_S)
    poser.disconnect()
    poser.loop_stop()
    victim.scores_on()
    assert {name for message in victim.gateway.predictions() for name, _ in message.devices} == {victim.gateway.device}


def test_a_target_that_poses_as_another_gives_it_no_orders_and_speaks_not_for_it(victim: Victim) -> None:
    """Another gateway's certificate, which is good, opens nothing of this one's."""
    before = victim.gateway.await_report(lambda report: report.running is not None)
    other = enrol(victim.gateway.settings, "gw-poser")
    order = Desired("", "", time.time_ns() // 1000, "forged")

    async def act() -> list[str]:
        certificate, refused = other.settings.certificate("target", other.target), []
        client = await broker.connect(other.settings, certificate, "test")
        client._inbox_prefix = bytearray(f"_INBOX.{other.target}".encode())
        for subject in ("$KV.desired", "notice.$KV.desired", "$KV.reported", "predictions"):
            try:
                await client.request(f"{subject}.{victim.gateway.target}", b"forged", timeout=0.3)
            except (nats.errors.Error, TimeoutError):
                refused.append(subject)
        await client.close()
        return refused

    assert len(asyncio.run(act())) == 4
    victim.scores_on()
    report = poll(victim.gateway.report, lambda: victim.gateway.log)
    assert report.running == before.running
    assert report.answers_us != order.issued_us


def _graph(victim: Victim, mirror: dict[str, bytes]) -> str:
    """Return the key of the newest release's graph."""
    return next(key for key in mirror if f"/{MODEL}/{victim.version}/" in key and key.endswith(".graph.onnx.0"))
