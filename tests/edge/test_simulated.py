"""Simulated gateways believe what an agent believes: attacks on the mirror that their own check of metadata refuses."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import Release, chunk_key
from fieldloop.domain.rollout import Desired
from fieldloop.stores import releases
from fieldloop.stores.settings import Settings
from infra.rehearsal.gateway import download
from infra.rehearsal.trust import Trust
from tests.edge.mirror import TIMESTAMP, Target, name_snapshot, version_of
from tests.edge.targets import make_release


class Simulated(Target):
    """A target that fetches as the gateways of a rehearsal do."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(settings, folder)
        self._trust = Trust(releases.trusted_root(settings), {})

    def fetch(self, desired: Desired, _: Sequence[bytes] = ()) -> Release:
        """Fetch a release; what was verified before is remembered."""
        return asyncio.run(download(self._file, self._trust, desired))

    async def _file(self, name: str) -> bytes | None:
        return self.read(chunk_key(name, 0))


@pytest.fixture
def target(install: Settings, tmp_path: Path) -> Simulated:
    """A simulated gateway that has fetched nothing yet."""
    return Simulated(install, tmp_path)


def test_a_release_comes_whole_and_its_metadata_once(target: Simulated) -> None:
    """The next time the timestamp alone is read again, and the root after the last is asked for."""
    release = make_release(model="simulated")
    wanted = target.publish(release)
    assert target.fetch(wanted) == release
    target.asked.clear()
    assert target.fetch(wanted) == release
    metadata = [key for key in target.asked if key.startswith("metadata/")]
    assert [key for key in metadata if "root" not in key] == ["metadata/timestamp.json.0"]


def test_metadata_of_before_is_refused(target: Simulated) -> None:
    """Rollback of the mirror to a state that this gateway has passed."""
    wanted = target.publish(make_release(model="simulated-rollback", version=1))
    before = dict(target.mirror)
    target.fetch(target.publish(make_release(model="simulated-rollback", version=2, bias=1.0)))
    target.mirror = before
    with pytest.raises(ReleaseError, match="BadVersionNumber"):
        target.fetch(wanted)


def test_an_older_timestamp_of_the_same_snapshot_is_refused(target: Simulated) -> None:
    """Freeze: its snapshot is the newest, and what it says of the time is of before."""
    wanted = target.publish(make_release(model="simulated-freeze"))
    before = target.mirror[TIMESTAMP]
    target.sign(lambda timestamp: setattr(timestamp, "version", timestamp.version + 1))
    target.fetch(wanted)
    target.mirror[TIMESTAMP] = before
    with pytest.raises(ReleaseError, match="BadVersionNumber"):
        target.fetch(wanted)


def test_another_signed_release_than_the_desired_one_is_refused(target: Simulated) -> None:
    """The desired state names the digest of one and the manifest of the other."""
    wanted = target.publish(make_release(model="simulated-other", version=1))
    other = target.publish(make_release(model="simulated-other", version=2, bias=1.0))
    with pytest.raises(ReleaseError, match=wanted.release[:12]):
        target.fetch(msgspec.structs.replace(wanted, manifest=other.manifest))


def test_an_older_part_of_the_snapshot_is_refused(target: Simulated) -> None:
    """A newer snapshot, rightly signed, that names older metadata than the one before."""
    target.publish(make_release(model="simulated-older", version=1))
    older = version_of(max((n for n in target.mirror if ".releases.json" in n), key=version_of))
    wanted = target.publish(make_release(model="simulated-older", version=2, bias=1.0))
    target.fetch(wanted)
    target.point_at("releases", older)
    with pytest.raises(ReleaseError, match="BadVersionNumber"):
        target.fetch(wanted)


def test_a_role_is_verified_again_when_another_key_has_become_its_own(target: Simulated) -> None:
    """Signed by a key that has been replaced since, it is refused, though this gateway believed it before."""
    wanted = target.publish(make_release(model="simulated-replaced"))
    target.fetch(wanted)
    targets = target.newest("targets")
    targets.signed.version += 1
    for keyid in list(targets.signed.delegations.roles["releases"].keyids):
        targets.signed.revoke_key(keyid, "releases")
    targets.signed.add_key(CryptoSigner.generate_ed25519().public_key, "releases")
    target.put("targets", targets, "targets")
    target.point_at("targets", targets.signed.version)
    with pytest.raises(ReleaseError, match="UnsignedMetadata"):
        target.fetch(wanted)


def _forge(target: Simulated) -> None:
    target.sign(lambda _: None, CryptoSigner.generate_ed25519())


def _expire(target: Simulated) -> None:
    target.sign(lambda timestamp: setattr(timestamp, "expires", datetime.now(UTC) - timedelta(seconds=1)))


def _mix(target: Simulated) -> None:
    """Put an older version of a role in the place of the newest."""
    found = sorted((name for name in target.mirror if ".releases.json" in name), key=version_of)
    target.mirror[found[-1]] = target.mirror[found[-2]]


def _lose(target: Simulated) -> None:
    target.sign(lambda timestamp: name_snapshot(timestamp, 10_000))


def _damage(target: Simulated) -> None:
    key = next(key for key in target.mirror if "/simulated-attack/" in key and "graph.onnx" in key)
    target.mirror[key] = target.mirror[key][:-1] + b"\x01"


@pytest.mark.parametrize(
    ("attack", "says"),
    [(_forge, "UnsignedMetadata"), (_expire, "Expired"), (_mix, "not trusted"), (_lose, "not in the release mirror"),
     (_damage, "damaged")],
)  # fmt: skip
def test_an_attack_on_the_mirror_is_refused(target: Simulated, attack: Callable[[Simulated], None], says: str) -> None:
    """By a gateway that has fetched nothing yet."""
    wanted = target.publish(make_release(model="simulated-attack"))
    attack(target)
    with pytest.raises(ReleaseError, match=says):
        target.fetch(wanted)
