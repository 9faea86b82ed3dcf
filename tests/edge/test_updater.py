"""Fetching over TUF: what an attacker can do to the mirror, done to it, and refused."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Signed, TargetFile

from fieldloop.domain.errors import ReleaseError, ServiceError
from fieldloop.domain.release import CHUNK_BYTES, Release, chunk_key
from fieldloop.domain.rollout import Desired
from fieldloop.edge import updater
from fieldloop.stores import releases
from fieldloop.stores.repository import stored_name
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import Role
from tests.edge.mirror import TIMESTAMP, Target, mirror_of, name_snapshot, version_of
from tests.edge.targets import make_release


@pytest.fixture
def target(install: Settings, tmp_path: Path) -> Target:
    """A target that has fetched nothing yet."""
    return Target(install, tmp_path)


def test_a_release_comes_whole(target: Target) -> None:
    """All three files, equal to what was published."""
    release = make_release(model="whole")
    assert target.fetch(target.publish(release)) == release


def test_an_older_release_can_be_desired_again(target: Target) -> None:
    """Rolling back a model is an order, not an attack: its files are still signed."""
    first, second = make_release(model="back", version=1), make_release(model="back", version=2, bias=1.0)
    wanted = target.publish(first)
    target.fetch(target.publish(second))
    assert target.fetch(wanted) == first


def test_metadata_of_before_is_refused(target: Target) -> None:
    """Rollback: the mirror is put back to a state that this target has already passed."""
    wanted = target.publish(make_release(model="rollback", version=1))
    before = dict(target.mirror)
    target.fetch(target.publish(make_release(model="rollback", version=2, bias=1.0)))
    target.mirror = before
    with pytest.raises(ReleaseError, match="BadVersionNumber"):
        target.fetch(wanted)


def test_expired_metadata_is_refused(target: Target) -> None:
    """Freeze: an old timestamp is held up for longer than it is good."""
    wanted = target.publish(make_release(model="freeze"))
    target.sign(_expire)
    with pytest.raises(ReleaseError, match="Expired"):
        target.fetch(wanted)


def test_a_mirror_held_still_is_refused_until_it_is_refreshed(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeze: nothing is forged, but the timestamp's time passes. The platform's refresh opens the way again."""
    wanted = target.publish(make_release(model="still"))
    latest = target.newest("snapshot").signed.expires
    later = datetime.now(UTC) + timedelta(days=40)
    assert latest < later
    monkeypatch.setattr(Signed, "is_expired", lambda signed, _=None: signed.expires <= later)
    with pytest.raises(ReleaseError, match="Expired"):
        target.fetch(wanted)
    assert releases.refresh(target.settings, later).renewed == ("releases", "snapshot", "timestamp")
    target.mirror = asyncio.run(mirror_of(target.settings))
    assert target.fetch(wanted).digest == wanted.release


def test_metadata_signed_by_another_key_is_refused(target: Target) -> None:
    """Only the install's own keys count, and they came with enrolment."""
    wanted = target.publish(make_release(model="key"))
    target.sign(lambda _: None, CryptoSigner.generate_ed25519())
    with pytest.raises(ReleaseError, match="UnsignedMetadata"):
        target.fetch(wanted)


def test_a_snapshot_of_another_time_is_refused(target: Target) -> None:
    """Mix and match: one role's metadata is replaced by an older version of the same role."""
    target.publish(make_release(model="mix", version=1))
    older = {name: data for name, data in target.mirror.items() if ".releases.json" in name}
    wanted = target.publish(make_release(model="mix", version=2, bias=1.0))
    newest = max((name for name in target.mirror if ".releases.json" in name), key=version_of)
    target.mirror[newest] = older[max(older, key=version_of)]
    with pytest.raises(ReleaseError, match="not trusted"):
        target.fetch(wanted)


@pytest.mark.parametrize("name", ["manifest.json", "graph.onnx", "canary.json"])
def test_a_changed_file_is_refused(target: Target, name: str) -> None:
    """One byte is enough. Of what had come nothing is kept: once the mirror is mended, the release comes whole."""
    release = make_release(model="byte")
    wanted = target.publish(release)
    key = next(key for key in target.mirror if "/byte/" in key and name in key)
    sound, target.mirror[key] = target.mirror[key], target.mirror[key][:-1] + b"\x01"
    with pytest.raises(ReleaseError, match="not trusted"):
        target.fetch(wanted)
    target.mirror[key] = sound
    assert target.fetch(wanted) == release


def test_a_manifest_that_is_too_long_is_not_even_fetched(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length is signed, and it would be read into memory."""
    wanted = target.publish(make_release(model="long"))
    monkeypatch.setattr(updater, "MANIFEST_BYTES", 10)
    with pytest.raises(ReleaseError, match="expected at most 10 bytes, got"):
        target.fetch(wanted)
    assert not [key for key in target.asked if "/long/" in key]


def test_endless_data_is_refused(target: Target) -> None:
    """A file ends at its signed length, however many chunks the mirror offers."""
    wanted = target.publish(make_release(model="endless"))
    full = bytes(CHUNK_BYTES)
    stem = next(key for key in target.mirror if "/endless/" in key and "graph" in key).removesuffix(".0")

    def read(key: str) -> bytes | None:
        return full if key.startswith(stem) else target.mirror.get(key)

    root, staging = releases.trusted_root(target.settings), target.folder / "incoming"
    staging.mkdir()
    with pytest.raises(ReleaseError, match="longer than"):
        updater.fetch(read, root, target.folder / "tuf", staging, wanted)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot"])
def test_endless_metadata_is_refused(target: Target, role: str) -> None:
    """Metadata has a longest length, and no more than that is read."""
    wanted = target.publish(make_release(model="endless-metadata"))
    asked = []

    def read(key: str) -> bytes | None:
        if f"{role}.json" not in key:
            return target.mirror.get(key)
        asked.append(key)
        return bytes(CHUNK_BYTES)

    root, staging = releases.trusted_root(target.settings), target.folder / "incoming"
    staging.mkdir()
    with pytest.raises(ReleaseError, match="longer than"):
        updater.fetch(read, root, target.folder / "tuf", staging, wanted)
    assert len(asked) <= 5


@pytest.mark.parametrize("garbage", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 16_000], ids=len)
def test_garbage_for_metadata_is_refused(target: Target, garbage: bytes) -> None:
    """Whatever comes, it is a refusal and no other error."""
    wanted = target.publish(make_release(model="garbage"))
    target.mirror[TIMESTAMP] = garbage
    with pytest.raises(ReleaseError, match="not trusted"):
        target.fetch(wanted)


@pytest.mark.parametrize("role", ["targets", "releases", "snapshot"])
def test_every_roles_expired_metadata_is_refused(target: Target, role: Role) -> None:
    """A fresh timestamp makes nothing fresh that it leads to."""
    wanted = target.publish(make_release(model="expired"))
    metadata = target.newest(role)
    _expire(metadata.signed)
    target.put(role, metadata, role)
    if role == "snapshot":
        target.sign(lambda timestamp: name_snapshot(timestamp, metadata.signed.version))
    else:
        target.point_at(role, metadata.signed.version)
    with pytest.raises(ReleaseError, match=f"{role}.* is expired"):
        target.fetch(wanted)


@pytest.mark.parametrize("keys", [(), ("snapshot", "timestamp")], ids=["unsigned", "online keys"])
@pytest.mark.parametrize("name", ["new", "stolen"])
def test_stolen_online_keys_sign_no_release(target: Target, name: str, keys: tuple[Role, ...]) -> None:
    """With snapshot's and timestamp's keys: neither a new release nor another graph for one that is there."""
    target.publish(make_release(model="stolen"))
    evil = make_release(model=name, bias=66.0)
    wanted = _smuggle(target, "releases", evil, f"releases/{name}/1", keys)
    with pytest.raises(ReleaseError, match="UnsignedMetadata"):
        target.fetch(wanted)


def test_the_key_of_releases_signs_nothing_in_the_name_of_targets(target: Target) -> None:
    """Who may sign what, and where, is said by the offline keys alone."""
    target.publish(make_release(model="stolen"))
    evil = make_release(model="above", bias=66.0)
    wanted = _smuggle(target, "targets", evil, "releases/above/1", ("releases", "snapshot", "timestamp"))
    with pytest.raises(ReleaseError, match="UnsignedMetadata"):
        target.fetch(wanted)


def test_the_key_of_releases_signs_nothing_outside_its_paths(target: Target) -> None:
    """What it signs elsewhere is as if it were not there."""
    target.publish(make_release(model="stolen"))
    evil = make_release(model="elsewhere", bias=66.0)
    wanted = _smuggle(target, "releases", evil, "elsewhere", ("releases",))
    with pytest.raises(ReleaseError, match="not among the signed targets"):
        target.fetch(wanted)


def test_stolen_online_keys_bring_no_older_targets_back(target: Target) -> None:
    """A target that has seen a newer list of releases takes no older one, for instance from before a withdrawal."""
    before = target.publish(make_release(model="withdrawn", version=1))
    older = target.newest("releases").signed.version
    target.fetch(target.publish(make_release(model="withdrawn", version=2, bias=1.0)))
    target.point_at("releases", older)
    with pytest.raises(ReleaseError, match="BadVersionNumber"):
        target.fetch(before)


@pytest.mark.parametrize("keys", [("releases", "snapshot", "timestamp"), ("targets", "releases", "snapshot")])
def test_stolen_keys_below_root_make_no_root(target: Target, keys: tuple[Role, ...]) -> None:
    """Who may sign what is said by the root's key alone."""
    wanted = target.publish(make_release(model="root"))
    root: Metadata[Root] = Metadata.from_bytes(releases.trusted_root(target.settings))
    root.signed.version += 1
    root.signed.add_key(CryptoSigner.generate_ed25519().public_key, "targets")
    target.put("root", root, *keys)
    with pytest.raises(ReleaseError, match="UnsignedMetadata"):
        target.fetch(wanted)


def test_a_release_that_is_not_the_desired_one_is_refused(target: Target) -> None:
    """A signed manifest under the right path, but with another digest than desired."""
    wanted = target.publish(make_release(model="digest"))
    other = Desired("0" * 64, wanted.manifest, 0, "test")
    with pytest.raises(ReleaseError, match="expected release 0000"):
        target.fetch(other)


def test_an_unpublished_release_is_refused(target: Target) -> None:
    """Desired state alone makes nothing run: only what is signed does."""
    target.publish(make_release(model="unsigned"))
    with pytest.raises(ReleaseError, match="not among the signed targets"):
        target.fetch(Desired("0" * 64, "releases/unsigned/9/manifest.json", 0, "test"))


def test_a_mirror_that_is_not_there_yet_is_tried_again(target: Target) -> None:
    """What is missing may come: no refusal, and what has been fetched is kept."""
    wanted = target.publish(make_release(model="late"))
    key = next(key for key in target.mirror if "/late/" in key and "graph" in key)
    graph = target.mirror.pop(key)
    with pytest.raises(ServiceError, match="not reachable now"):
        target.fetch(wanted)
    target.mirror[key] = graph
    manifest = next(key for key in target.mirror if "/late/" in key and "manifest" in key)
    del target.mirror[manifest]  # it is on disk already
    assert target.fetch(wanted).graph == graph


def test_files_of_many_chunks_come_whole() -> None:
    """A file that ends on a chunk's border is followed by an empty chunk."""
    for length in (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES):
        data = bytes(range(256)) * (length // 256 + 1)
        data = data[:length]
        chunks = {
            chunk_key("f", i): data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES] for i in range(length // CHUNK_BYTES + 1)
        }
        assert updater.Mirror(chunks.get).download_bytes("f", length) == data


def _smuggle(target: Target, role: str, release: Release, folder: str, keys: tuple[Role, ...]) -> Desired:
    """Put a release into the mirror, named by metadata of a role that is signed with the keys at hand."""
    metadata = target.newest(role)
    for file, data in release.files().items():
        described = TargetFile.from_data(f"{folder}/{file}", data, ["sha256"])
        metadata.signed.targets[described.path] = described
        target.mirror[f"{stored_name(described)}.0"] = data
    metadata.signed.version += 1
    target.put(role, metadata, *keys)
    target.point_at(role, metadata.signed.version)
    return Desired(release.digest, f"{folder}/manifest.json", 0, "test")


def _expire(signed: Signed) -> None:
    signed.version += 1
    signed.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)
