"""The release repository and its mirror, on a real object store and broker."""

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from tuf.api.metadata import Metadata, Targets

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.release import CHUNK_BYTES, File, Manifest, Release, encode_manifest
from fieldloop.domain.windows import WindowSpec
from fieldloop.stores import broker, objects, releases
from fieldloop.stores.settings import Settings
from fieldloop.stores.signing import OFFLINE


@pytest.fixture(scope="module")
def install(nats: Settings, store: Settings) -> Settings:
    """Join the broker and the object store of the session into one installation."""
    return nats.model_copy(
        update={"store_url": store.store_endpoint, "secrets_dir": store.secrets, "keys_dir": store.keys_dir}
    )


def _release(model: str, version: int = 1, graph: bytes = b"graph") -> Release:
    canary = b"canary"
    spec = WindowSpec(("wind",), ("mean",), 1, 2)
    manifest = Manifest(
        model, model, version, "run", spec, {}, "p", "kW", (), File.of(graph), File.of(canary), "", 0.0, {}, {}, ""
    )
    return Release(encode_manifest(manifest), graph, canary)


def test_a_release_published_again_changes_nothing(install: Settings) -> None:
    """Same bytes, same repository: no new version of any metadata."""
    release = _release("again")
    first = releases.publish(install, release)
    before = _objects(install)
    second = releases.publish(install, release)
    assert (first.new, second.new) == (True, False)
    assert first.digest == second.digest == release.digest
    assert _objects(install) == before


def test_a_published_release_can_be_read_back(install: Settings) -> None:
    """The manifest lies under its own digest."""
    published = releases.publish(install, _release("read", version=7))
    assert releases.manifest_of(install, published).version == 7


def test_a_large_file_is_mirrored_in_chunks(install: Settings) -> None:
    """Every chunk fits a message, and the last is shorter than a full one."""
    graph = bytes(2 * CHUNK_BYTES)
    releases.publish(install, _release("chunks", graph=graph))
    sizes = asyncio.run(_mirrored(install, "/chunks/", "graph.onnx"))
    assert sizes == [CHUNK_BYTES, CHUNK_BYTES, 0]


def test_publishing_again_mends_a_damaged_mirror(install: Settings) -> None:
    """The object store is the system of record."""
    release = _release("mend")
    releases.publish(install, release)
    asyncio.run(_damage(install, "/mend/"))
    assert asyncio.run(_mirrored(install, "/mend/", "graph.onnx")) == [0]
    releases.publish(install, release)
    assert asyncio.run(_mirrored(install, "/mend/", "graph.onnx")) == [len(release.graph)]


def test_a_release_that_contradicts_itself_is_not_published(install: Settings) -> None:
    """Nothing is signed whose files are not those of its manifest."""
    release = _release("contradiction")
    with pytest.raises(ReleaseError, match=r"graph\.onnx"):
        releases.publish(install, Release(release.manifest, b"other", release.canary))


def test_metadata_that_this_install_did_not_sign_is_not_built_upon(install: Settings) -> None:
    """Somebody with write access to the bucket cannot have entries signed by us."""
    releases.publish(install, _release("forged"))
    store = objects.client(install, "releases")
    name = max((n for n in _objects(install) if n.endswith(".releases.json")), key=_number)
    genuine = objects.get(store, "releases", name)
    metadata: Metadata[Targets] = Metadata.from_bytes(genuine)
    metadata.signed.targets.clear()
    objects.put(store, "releases", name, metadata.to_bytes())
    try:
        with pytest.raises(ReleaseError, match="not signed by the keys of this installation"):
            releases.publish(install, _release("forged", version=2))
    finally:
        objects.put(store, "releases", name, genuine)


def test_releases_published_at_once_are_all_signed(install: Settings) -> None:
    """One writer at a time, and none overwrites another's entry."""
    wanted = [_release("crowd", version=n) for n in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda release: releases.publish(install, release), wanted))
    name = max((n for n in _objects(install) if n.endswith(".releases.json")), key=_number)
    metadata: Metadata[Targets] = Metadata.from_bytes(
        objects.get(objects.client(install, "releases"), "releases", name)
    )
    listed = [path for path in metadata.signed.targets if path.startswith("releases/crowd/")]
    assert len(listed) == 4 * 3


def test_a_revoked_release_is_signed_no_longer(install: Settings) -> None:
    """Revoked again it changes nothing; its neighbours stay; it is listed with its reason, and published no more."""
    first, second = _release("recall"), _release("recall", version=2)
    for release in (first, second):
        releases.publish(install, release)
    entry = releases.revoke(install, "recall/1", "wrong unit")
    before = _objects(install)
    assert releases.revoke(install, "recall/1", "once more") == entry
    assert _objects(install) == before
    names = {each.name: each.digest for each in releases.signed(install)}
    assert ("recall/1" in names, names["recall/2"]) == (False, second.digest)
    assert entry in releases.revoked(install)
    with pytest.raises(ReleaseError, match=r"recall/1 was revoked .*: wrong unit"):
        releases.publish(install, first)


@pytest.mark.parametrize(
    ("name", "reason"), [("recall/9", "r"), ("../up", "r"), ("recall/2", ""), ("recall/2", "r" * 501)]
)
def test_what_cannot_be_revoked_is_named(install: Settings, name: str, reason: str) -> None:
    """A release that is not there, or a reason that says nothing or too much."""
    releases.publish(install, _release("recall", version=2))
    with pytest.raises(ReleaseError, match="expected"):
        releases.revoke(install, name, reason)


def test_signing_keys_are_private(install: Settings) -> None:
    """Keys and the folder that holds them are for their owner alone."""
    releases.trusted_root(install)
    online, offline = install.secrets / "tuf", install.offline_keys
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (online, offline)} == {0o700}
    keys = [*online.glob("*.pem"), *offline.glob("*.pem")]
    assert len(keys) == 5
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_offline_keys_lie_apart_and_encrypted(install: Settings) -> None:
    """Whoever has the data folder, or a copy of it, has neither root's nor targets' key."""
    releases.trusted_root(install)
    names = {path.name.partition("-")[0] for path in install.data_dir.rglob("*.pem")}
    assert not names & set(OFFLINE)
    for path in install.offline_keys.glob("*.pem"):
        assert b"ENCRYPTED" in path.read_bytes()


def _objects(settings: Settings) -> dict[str, str | None]:
    found = objects.client(settings, "releases").list_objects(bucket_name="releases", recursive=True)
    return {str(each.object_name): each.etag for each in found}


def _number(name: str) -> int:
    return int(name.removeprefix("metadata/").split(".")[0])


async def _mirrored(settings: Settings, folder: str, name: str) -> list[int]:
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        names = [s for s in info.state.subjects or {} if folder in s and f".{name}." in s]
        subjects = sorted(s for s in names if ".from-" not in s)
        messages = [await js.get_msg("KV_releases", subject=s, direct=True) for s in subjects]
        return [len(message.data or b"") for message in messages]


async def _damage(settings: Settings, folder: str) -> None:
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        for subject in info.state.subjects or {}:
            if folder in subject:
                await js.publish(subject, b"")
