"""A release comes as a small patch where there is one, and whole at any trouble with that."""

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

from fieldloop.domain.patch import NOTHING, patch_name
from fieldloop.domain.release import File, Release, encode_manifest
from fieldloop.domain.rollout import Desired
from fieldloop.stores import broker, releases
from fieldloop.stores.rollouts import now_us
from fieldloop.stores.settings import Settings
from tests.edge.mirror import Target
from tests.edge.targets import Gateway, make_release

LENGTH = 20_000


@pytest.fixture
def target(install: Settings, tmp_path: Path) -> Target:
    """A target that has fetched nothing yet."""
    return Target(install, tmp_path)


def test_the_next_version_comes_as_a_patch(target: Target) -> None:
    """From the graph that is here; the whole is not asked for."""
    first, second = _heavy("patch", 1), _heavy("patch", 2)
    target.publish(first)
    wanted = target.publish(second)
    assert target.fetch(wanted, [first.graph]) == second
    assert _asked(target, patch_name("graph.onnx", first.graph))
    assert not _asked(target, "graph.onnx.0")
    patch = next(data for key, data in target.mirror.items() if patch_name("graph.onnx", first.graph) in key)
    assert len(patch) < LENGTH / 20


def test_a_first_version_comes_compressed(target: Target) -> None:
    """There is nothing here to start from."""
    release = _heavy("alone", 1)
    assert target.fetch(target.publish(release)) == release
    assert _asked(target, patch_name("graph.onnx", NOTHING))
    assert not _asked(target, "graph.onnx.0")


def test_two_versions_back_have_a_patch_and_older_ones_do_not(target: Target) -> None:
    """Who has an older one still gets the compressed whole."""
    made = [_heavy("row", version) for version in range(1, 5)]
    for release in made:
        wanted = target.publish(release)
    names = {key for key in target.mirror if "/row/4/" in key and ".from-" in key}
    starts = {old: any(patch_name("graph.onnx", old) in name for name in names) for old in (r.graph for r in made[:3])}
    assert list(starts.values()) == [False, True, True]
    assert target.fetch(wanted, [made[0].graph]) == made[-1]
    assert _asked(target, patch_name("graph.onnx", NOTHING))


@pytest.mark.parametrize("damage", ["changed", "missing", "endless"])
def test_the_whole_comes_where_the_patch_is_damaged(target: Target, damage: str) -> None:
    """Whatever is wrong with the patch, the release runs."""
    first, second = _heavy(f"patch-{damage}", 1), _heavy(f"patch-{damage}", 2)
    target.publish(first)
    wanted = target.publish(second)
    name = patch_name("graph.onnx", first.graph)
    key = next(key for key in target.mirror if f"/patch-{damage}/2/" in key and name in key)
    if damage == "missing":
        del target.mirror[key]
    else:
        target.mirror[key] = b"\x00" + target.mirror[key][1:] + b"\x00" * 10_000 * (damage == "endless")
    assert target.fetch(wanted, [first.graph]) == second
    assert _asked(target, "graph.onnx.0")


def test_the_whole_comes_where_a_signed_patch_leads_elsewhere(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed or not, what counts is the digest of the result."""
    first, second = _heavy("wrong", 1), _heavy("wrong", 2)
    target.publish(first)
    with monkeypatch.context() as patched:
        patched.setattr("fieldloop.stores.patches.make_patch", lambda *_: b"signed, and no patch")
        wanted = target.publish(second)
    assert target.fetch(wanted, [first.graph]) == second
    assert _asked(target, "graph.onnx.0")


def test_patches_are_made_once_and_go_with_their_graph(install: Settings) -> None:
    """Published again, nothing changes; another graph under the same version takes its patches along."""
    first, second, other = _heavy("once", 1), _heavy("once", 2), _heavy("once", 2, seed=9)
    for release in (first, second):
        releases.publish(install, release)
    before = _signed(install)
    assert not releases.publish(install, second).new
    assert _signed(install) == before
    releases.publish(install, other)
    after = _signed(install)
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {path for path in before if path.startswith("releases/once/2/") and "canary" not in path}


def test_an_agent_takes_the_patch(gateway: Gateway) -> None:
    """With the whole graph gone from the mirror there is no other way."""
    first, second = _heavy(gateway.target, 1), _heavy(gateway.target, 2)
    gateway.start()
    gateway.desire(first)
    gateway.await_running(first)
    published = releases.publish(gateway.settings, second)
    asyncio.run(_lose(gateway.settings, f"/{gateway.target}/2/"))
    gateway.order(Desired(published.digest, published.manifest, now_us(), "test"))
    gateway.await_running(second)


def _heavy(model: str, version: int, seed: int = 7) -> Release:
    """Return a release with a graph of some length, of which little differs from version to version."""
    release = make_release(model=model, version=version, bias=float(version))
    graph = onnx.load_from_string(release.graph)
    graph.doc_string = np.random.default_rng(seed).bytes(LENGTH // 2).hex()
    data = bytes(graph.SerializeToString())
    manifest = msgspec.structs.replace(release.open(release.digest), graph=File.of(data))
    return Release(encode_manifest(manifest), data, release.canary)


def _asked(target: Target, name: str) -> bool:
    return any(name in key for key in target.asked)


async def _lose(settings: Settings, folder: str) -> None:
    """Take a release's whole graph out of the mirror."""
    async with broker.platform(settings) as (_, js):
        info = await js.stream_info("KV_releases", subjects_filter=">")
        for subject in info.state.subjects or {}:
            if folder in subject and "graph.onnx.0" in subject:
                await js.purge_stream("KV_releases", subject=subject)


def _signed(settings: Settings) -> dict[str, str]:
    with releases.opened(settings) as (repository, _):
        files = {path: file.hashes["sha256"] for path, file in repository.files.items() if "/once/" in path}
    return files
