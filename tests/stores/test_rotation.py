"""Signing keys over time: replaced and renewed under targets that were away, on a real object store and broker."""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tuf.api.metadata import Metadata, Signed, Timestamp

from fieldloop.domain.errors import ReleaseError, StoreError
from fieldloop.domain.release import Release, chunk_key
from fieldloop.domain.rollout import Desired
from fieldloop.edge import updater
from fieldloop.stores import broker, objects, releases, rotation
from fieldloop.stores.private import private_folder
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import ROLES, Keys, Role
from fieldloop.stores.trust import LIFETIME
from infra.rehearsal.gateway import download
from infra.rehearsal.trust import Trust as SimulatedTrust
from tests.edge.targets import make_release

PASSPHRASE = "correct horse battery"


@pytest.fixture
def install(nats: Settings, store: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Join broker and object store of the session into one installation with keys and a repository of its own."""
    secrets = private_folder(tmp_path / "secrets")
    (secrets / "store.json").write_bytes((store.secrets / "store.json").read_bytes())
    changes = {"store_url": store.store_endpoint, "secrets_dir": secrets, "keys_dir": tmp_path / "keys"}
    settings = nats.model_copy(update=changes)
    _empty(settings)
    yield settings
    _empty(settings)


@pytest.fixture
def away(install: Settings, tmp_path: Path) -> Callable[[Release], Release]:
    """Fetch as a target that was enrolled before anything happened, and keeps the metadata that it has seen."""
    root = releases.trusted_root(install)

    def fetch(release: Release) -> Release:
        staging = tmp_path / release.digest
        staging.mkdir(exist_ok=True)
        manifest = f"releases/{release.open(release.digest).model}/1/manifest.json"
        read = asyncio.run(_mirrored(install)).get
        return updater.fetch(read, root, tmp_path / "tuf", staging, Desired(release.digest, manifest, 0, "test"))

    return fetch


@pytest.fixture
def simulated(install: Settings) -> Callable[[Release], Release]:
    """Fetch as a simulated target does, enrolled before anything happened."""
    trust = SimulatedTrust(releases.trusted_root(install), {})

    def fetch(release: Release) -> Release:
        mirror = asyncio.run(_mirrored(install))

        async def read(name: str) -> bytes | None:
            return mirror.get(chunk_key(name, 0))

        manifest = f"releases/{release.open(release.digest).model}/1/manifest.json"
        return asyncio.run(download(read, trust, Desired(release.digest, manifest, 0, "test")))

    return fetch


@pytest.mark.parametrize("role", ROLES)
def test_a_target_follows_a_new_key(
    install: Settings, away: Callable[[Release], Release], simulated: Callable[[Release], Release], role: Role
) -> None:
    """What was signed before stays good, what is signed after is good, and the old key's file is gone."""
    first, second = make_release(model="before"), make_release(model="after")
    releases.publish(install, first)
    assert away(first) == simulated(first)
    before = _keys(install)
    rotation.rotate(install, [role], None, datetime.now(UTC))
    after = _keys(install)
    assert {each for each in ROLES if before[each] != after[each]} == {role}
    files = [*install.offline_keys.glob("*.pem"), *(install.secrets / "tuf").glob("*.pem")]
    assert sorted(path.name for path in files) == sorted(f"{r}-{after[r][:16]}.pem" for r in ROLES)
    releases.publish(install, second)
    assert (away(second), away(first)) == (simulated(second), simulated(first)) == (second, first)


def test_a_target_that_was_away_follows_the_chain_of_roots(
    install: Settings, away: Callable[[Release], Release]
) -> None:
    """It has the first root alone, and meets one that is four rotations and a renewal later."""
    release = make_release(model="chain")
    releases.publish(install, release)
    now = datetime.now(UTC)
    for roles in (["root"], ["root", "timestamp"], ROLES):
        rotation.rotate(install, roles, None, now)
    rotation.renew(install, None, now)
    assert {state.role: state.version for state in rotation.states(install)}["root"] == 9
    assert away(release) == release


def test_a_stolen_key_that_ran_ahead_is_left_behind_with_its_versions(
    install: Settings, away: Callable[[Release], Release], simulated: Callable[[Release], Release]
) -> None:
    """A timestamp of version 1,000 makes the next right one look old, until the key that signed it is replaced."""
    release, name = make_release(model="ahead"), "metadata/timestamp.json.0"
    releases.publish(install, release)
    timestamp: Metadata[Timestamp] = Metadata.from_bytes(asyncio.run(_mirrored(install))[name])
    timestamp.signed.version = 1000
    with releases.opened(install) as (repository, keys):
        timestamp.sign(keys.signer("timestamp", repository.trust.keyid("timestamp")))
    asyncio.run(_put(install, name, timestamp.to_bytes()))
    assert away(release) == simulated(release)
    rotation.rotate(install, ["timestamp"], None, datetime.now(UTC))
    assert away(release) == simulated(release) == release


def test_a_root_that_the_old_key_did_not_sign_is_refused(
    install: Settings, away: Callable[[Release], Release], simulated: Callable[[Release], Release]
) -> None:
    """The new key alone makes no root, whoever has it."""
    release = make_release(model="usurped")
    releases.publish(install, release)
    rotation.rotate(install, ["root"], None, datetime.now(UTC))
    with releases.opened(install) as (repository, _):
        forged, new = repository.trust.root, repository.trust.keyid("root")
    forged.signatures = {keyid: each for keyid, each in forged.signatures.items() if keyid == new}
    asyncio.run(_put(install, "metadata/2.root.json.0", forged.to_bytes()))
    for fetch in (away, simulated):
        with pytest.raises(ReleaseError, match="UnsignedMetadata"):
            fetch(release)


def test_root_and_targets_are_renewed_before_they_expire(
    install: Settings, away: Callable[[Release], Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year on, targets refuse; renewed in time, they go on. `check` says so long before."""
    release = make_release(model="year")
    releases.publish(install, release)
    now, within = datetime.now(UTC), timedelta(days=60)
    assert rotation.check(install, None, now, within) == ()
    late = now + timedelta(days=LIFETIME["root"] - 30)
    releases.refresh(install, late)
    told = rotation.check(install, None, late, within)
    assert [line.partition(" ")[0] for line in told] == ["root", "targets"]
    assert all("fieldloop keys renew" in line for line in told)
    rotation.renew(install, None, late)
    assert rotation.check(install, None, late, within) == ()
    year = now + timedelta(days=LIFETIME["root"] + 5)
    releases.refresh(install, year)
    monkeypatch.setattr(Signed, "is_expired", lambda signed, _=None: signed.expires <= year)
    assert away(release) == release


def test_a_rotation_that_was_killed_is_finished_by_the_next_refresh(
    install: Settings, away: Callable[[Release], Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are replaced, nothing is signed anew: the refresh does it, and nobody need give a passphrase."""
    release = make_release(model="killed")
    releases.publish(install, release)

    def killed(*_: object) -> None:
        raise StoreError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(rotation, "_publish", killed)
        with pytest.raises(StoreError, match="killed"):
            rotation.rotate(install, ROLES, None, datetime.now(UTC))
    assert releases.refresh(install, datetime.now(UTC)).renewed == ("releases", "snapshot", "timestamp")
    assert releases.refresh(install, datetime.now(UTC)).renewed == ()
    assert away(release) == release


def test_what_a_replaced_key_signed_later_is_not_built_upon(install: Settings) -> None:
    """A stolen key is worth nothing once it is replaced, to whoever can write into the bucket."""
    releases.publish(install, make_release(model="thief"))
    with releases.opened(install) as (repository, keys):
        stolen = keys.signer("timestamp", repository.trust.keyid("timestamp"))
        forged = repository._timestamp
    rotation.rotate(install, ["timestamp"], None, datetime.now(UTC))
    forged.signed.version += 10
    forged.sign(stolen)
    objects.put(objects.client(install, "releases"), "releases", "metadata/timestamp.json", forged.to_bytes())
    with pytest.raises(ReleaseError, match="not signed by the keys of this installation"):
        releases.refresh(install, datetime.now(UTC))


def test_protected_keys_want_their_passphrase_and_releases_do_not(install: Settings, tmp_path: Path) -> None:
    """A deployment at night signs with the online key; root and targets wait for a person."""
    releases.publish(install, make_release(model="day"))
    rotation.protect(install, PASSPHRASE, None)
    releases.publish(install, make_release(model="night"))
    now = datetime.now(UTC)
    with pytest.raises(ReleaseError, match="run this at a terminal"):
        rotation.rotate(install, ["root"], None, now)
    with pytest.raises(ReleaseError, match="does not open the root key"):
        rotation.rotate(install, ["root"], lambda _: "something else", now)
    rotation.rotate(install, ["root"], lambda _: PASSPHRASE, now)
    file = tmp_path / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    given = install.model_copy(update={"keys_passphrase_file": file})
    assert rotation.check(given, None, now, timedelta(days=60)) == ()


def test_a_change_of_passphrase_that_was_killed_goes_on(install: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key has the new passphrase, the other not yet: neither is lost."""
    releases.trusted_root(install)
    written = Keys._write

    def killed(keys: Keys, role: Role, keyid: str, key: Any) -> None:
        if role == "targets":
            raise StoreError("killed")
        written(keys, role, keyid, key)

    with monkeypatch.context() as patched:
        patched.setattr(Keys, "_write", killed)
        with pytest.raises(StoreError, match="killed"):
            rotation.protect(install, PASSPHRASE, None)
    rotation.protect(install, PASSPHRASE, None)
    assert not Keys(install).unprotected()
    assert rotation.check(install, lambda _: PASSPHRASE, datetime.now(UTC), timedelta(days=60)) == ()


def test_a_short_passphrase_is_refused(install: Settings) -> None:
    """The keys stay as they are."""
    releases.trusted_root(install)
    with pytest.raises(ReleaseError, match="at least 12 characters"):
        rotation.protect(install, "short", None)
    assert rotation.check(install, None, datetime.now(UTC), timedelta(days=60)) == ()


def test_a_lost_key_is_named(install: Settings) -> None:
    """What is missing, where, and what to do."""
    releases.trusted_root(install)
    next(install.offline_keys.glob("targets-*.pem")).unlink()
    (reason,) = rotation.check(install, None, datetime.now(UTC), timedelta(days=60))
    assert "the targets key is not there" in reason
    assert "FIELDLOOP_KEYS_DIR" in reason


def test_a_key_is_no_plain_pem_of_its_passphrase(install: Settings) -> None:
    """PEM's own stretching is weak; a guess costs a run of scrypt."""
    releases.trusted_root(install)
    made = (install.offline_keys / "passphrase").read_bytes()
    for path in install.offline_keys.glob("*.pem"):
        with pytest.raises(ValueError, match="password"):
            load_pem_private_key(path.read_bytes(), made)


def _keys(settings: Settings) -> dict[Role, str]:
    return {state.role: state.keyid for state in rotation.states(settings)}


def _empty(settings: Settings) -> None:
    """Remove all there is in the bucket and its mirror: other tests use them too, with other keys."""
    store = objects.client(settings, "releases")
    for item in store.list_objects(bucket_name="releases", recursive=True):
        store.remove_object(bucket_name="releases", object_name=str(item.object_name))

    async def purge() -> None:
        async with broker.platform(settings) as (_, js):
            await js.purge_stream("KV_releases")

    asyncio.run(purge())


async def _put(settings: Settings, key: str, data: bytes) -> None:
    async with broker.platform(settings) as (_, js):
        await js.publish(f"$KV.releases.{key}", data)


async def _mirrored(settings: Settings) -> dict[str, bytes]:
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        messages = {s: await js.get_msg("KV_releases", subject=s, direct=True) for s in info.state.subjects or {}}
    return {subject.removeprefix("$KV.releases."): message.data or b"" for subject, message in messages.items()}
