"""A gateway enrols by the command line and renews its certificate by itself: real broker, signer and agent."""

import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fieldloop.edge import identity, validity
from fieldloop.stores.settings import Settings
from infra.local import roster
from infra.local.identities import admit_devices, admit_targets, revoke
from tests.edge.targets import Gateway, poll


@pytest.fixture
def joined(install: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A target that has enrolled itself, in a folder of its own, through the command line."""
    name = f"gw-{zlib.crc32(request.node.nodeid.encode())}"
    token = admit_targets(install, {name: {f"dev-{name}": "toy"}})[name]
    done = _enrol(token, tmp_path / "etc")
    assert done.returncode == 0, done.stderr
    assert "start its agent: fieldloop-agent --config" in done.stdout
    gateway = Gateway(install, name, f"dev-{name}", tmp_path / "etc" / "agent.json")
    gateway.configure(heartbeat_s=0.5, poll_s=1.0)
    yield gateway
    gateway.stop()


def test_a_gateway_enrols_and_reports_what_it_is(joined: Gateway) -> None:
    """Its key was made here, is its owner's alone, and is nowhere on the platform; its report says what it runs on."""
    folder = joined.config.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "identity.pem").stat().st_mode) == 0o600
    key = (folder / "identity.pem").read_text().split("-----")[2].strip().encode()
    kept = [path for path in joined.settings.data_dir.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]
    assert not [path for path in kept if key in path.read_bytes()]
    joined.start()
    report = joined.await_report(lambda r: r.certificate.until_us > 0)
    issued = roster.issued(joined.settings, "target", joined.target)
    assert issued is not None
    assert report.certificate.until_us == issued.until_us
    assert report.inventory.versions.keys() >= {"fieldloop", "python", "onnxruntime"}
    assert report.inventory.distribution
    assert report.inventory.free_bytes > 0


def test_an_agent_renews_by_itself_and_retries_what_fails(joined: Gateway) -> None:
    """A certificate whose end is unknown is due: refused, it is reported and tried again; then all is well."""
    file = joined.config.parent / "identity.pem"
    before = file.read_bytes()
    file.write_bytes(before.split(b"\n", 1)[1])
    member = roster.member(joined.settings, "target", joined.target)
    assert member is not None
    other = msgspec.structs.replace(member, generation="other")
    roster.enter(joined.settings, "target", joined.target, other)  # the signer refuses, the broker does not know yet
    joined.start()
    report = joined.await_report(lambda r: r.certificate.error is not None)
    assert "made void by a later one" in (report.certificate.error or "")
    roster.enter(joined.settings, "target", joined.target, member)
    joined.await_report(lambda r: r.certificate.error is None and r.certificate.until_us > 0)
    poll(lambda: joined.log.count("connected to") >= 2 or None, lambda: joined.log)
    after = file.read_bytes()
    assert validity.read(after) is not None
    old, new = (identity.read_certificate(pem, "") for pem in (before, after))
    assert (old.subject, old.public_key()) == (new.subject, new.public_key())
    assert old.serial_number != new.serial_number
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_that_does_not_help_ends_with_one_line(install: Settings, tmp_path: Path) -> None:
    """Exit status 2, nothing written that an agent could start from."""
    done = _enrol("fieldloop1.AAAA", tmp_path / "etc")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("fieldloop-agent: the token is damaged or cut off: copy all of it, or ask for another one\n")


def test_who_was_revoked_is_told_what_to_do(joined: Gateway) -> None:
    """The broker itself says no more than that it does not know it."""
    revoke(joined.settings, "target", [joined.target])
    command = [sys.executable, "-m", "fieldloop.edge.main", "renew", "--config", str(joined.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"was {joined.target} revoked, or enrolled anew? `fieldloop target add {joined.target}`" in done.stderr


def test_without_a_configuration_it_is_said_who_writes_one(tmp_path: Path) -> None:
    """And where it was looked for."""
    command = [sys.executable, "-m", "fieldloop.edge.main", "--config", str(tmp_path / "agent.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"'{tmp_path}/agent.json': `fieldloop-agent enrol --folder {tmp_path}` writes it" in done.stderr


def test_a_device_enrols_by_the_same_command(install: Settings, tmp_path: Path) -> None:
    """It is told where to publish, and gets its two files."""
    token = admit_devices(install, ["meter-7"])["meter-7"]
    done = _enrol(token, tmp_path)
    assert f"devices/meter-7/readings at {install.mqtt_endpoint}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.pem", "identity.pem"]


def _enrol(token: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fieldloop.edge.main", "enrol", "--folder", str(folder)]
    return subprocess.run(command, input=token, capture_output=True, text=True, timeout=60)
