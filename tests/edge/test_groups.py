"""One release with a graph for each group of targets: each takes its own by its labels, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldloop.domain.document import load
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.release import GRAPH, Release, decode_manifest, encode_manifest
from fieldloop.domain.rollout import Desired
from fieldloop.stores import releases
from fieldloop.stores.fleet import Target
from fieldloop.stores.rollouts import now_us
from fieldloop.stores.settings import Settings
from tasks.groups import combine
from tasks.rollout import refuse_unsuited
from tests.edge.mirror import Target as Fetching
from tests.edge.targets import Gateway, enrol, make_release, mean_of_windows, payload
from tests.tasks.farm import TEXT

GROUPS = "groups: {label: site, of: {north: {include: ['N*']}, south: {include: ['S*']}}}"
BIAS = {"north": 1.0, "south": 20.0}

Make = Callable[[str], Gateway]


@pytest.fixture
def make(install: Settings) -> Iterator[Make]:
    """Return a maker of gateways with their agents running."""
    made: list[Gateway] = []

    def start(name: str) -> Gateway:
        made.append(enrol(install, name))
        made[-1].start()
        return made[-1]

    yield start
    for gateway in made:
        gateway.stop()


def test_each_target_runs_the_graph_for_its_labels(install: Settings, make: Make) -> None:
    """One digest, two graphs, a proof each; who has no group's label says so, and runs nothing."""
    release = _grouped(install, "sites")
    published = releases.publish(install, release)
    gateways = {site: make(f"groups-{site}") for site in BIAS}
    lost = make("groups-lost")
    labelled = {"groups-north": ("site=north", "plant=a"), "groups-south": ("site=south",), "groups-lost": ()}
    for gateway in (*gateways.values(), lost):
        labels = labelled[gateway.target]
        gateway.order(Desired(published.digest, published.manifest, now_us(), "test", labels=labels))
    for site, gateway in gateways.items():
        report = gateway.await_running(release)
        variant = next(each for each in decode_manifest(release.manifest).variants if each.name == site)
        assert report.running is not None
        assert report.running.proof.output_hash == variant.output_hash
        gateway.send([payload(range(10))])
        rows = gateway.await_rows(6)
        values = [rows[end][0] for end in sorted(rows)]
        np.testing.assert_allclose(values, mean_of_windows(range(3, 9), BIAS[site]), rtol=1e-6)
    refused = lost.await_report(lambda report: report.refused)
    assert "expected that one is for a target with no labels, got none" in (refused.error or "")


def test_a_target_that_changes_its_group_takes_the_other_graph(install: Settings, make: Make) -> None:
    """The release is the same, and so is its digest."""
    release = _grouped(install, "moved")
    published = releases.publish(install, release)
    gateway = make("groups-moved")
    hashes = {each.name: each.output_hash for each in decode_manifest(release.manifest).variants}
    for site in ("north", "south"):
        gateway.order(Desired(published.digest, published.manifest, now_us(), "test", labels=(f"site={site}",)))
        gateway.await_report(lambda r, site=site: r.running is not None and r.running.proof.output_hash == hashes[site])


def test_only_its_own_graph_is_downloaded(install: Settings, tmp_path: Path) -> None:
    """Neither graph nor canary of another group is asked for."""
    release = _grouped(install, "own")
    target = Fetching(install, tmp_path)
    wanted = msgspec.structs.replace(target.publish(release), labels=("site=south",))
    assert target.fetch(wanted).open(release.digest).variants[0].name == "south"
    assert any("south.graph.onnx" in key for key in target.asked)
    assert not any("north." in key for key in target.asked)


def test_the_same_models_give_the_same_release(install: Settings) -> None:
    """Another model of one group gives the next one; of models that were revoked there is none again."""
    first = _grouped(install, "again")
    assert releases.publish(install, first).new
    assert not releases.publish(install, _grouped(install, "again")).new
    second = _grouped(install, "again", south=2)
    assert decode_manifest(second.manifest).version == 2
    releases.publish(install, second)
    releases.revoke(install, "again/2", "south is wrong")
    with pytest.raises(ReleaseError, match="again/2 of these models was revoked"):
        _grouped(install, "again", south=2)
    assert decode_manifest(_grouped(install, "again", south=3).manifest).version == 3


def test_a_rollout_names_targets_that_match_no_graph_or_two(install: Settings) -> None:
    """Before anything is asked of anybody."""
    manifest = decode_manifest(_grouped(install, "matching").manifest)
    good = [Target("a", ("d",), ("site=north",)), Target("b", ("d",), ("site=south", "x=y"))]
    refuse_unsuited(manifest, good)
    with pytest.raises(ReleaseError, match=r"1 of 3 targets \(c\).*got none"):
        refuse_unsuited(manifest, [*good, Target("c", ("d",), ("site=west",))])
    with pytest.raises(ReleaseError, match=r"1 of 3 targets \(c\).*got north and south"):
        refuse_unsuited(manifest, [*good, Target("c", ("d",), ("site=north", "site=south"))])


def test_models_of_different_recipes_make_no_release(install: Settings) -> None:
    """What they answer must be comparable."""
    other = make_release(model="strange--south", tolerance=0.5)
    with pytest.raises(ReleaseError, match="`north` and `south` differ in tolerance"):
        combine(install, _recipe("strange"), {"north": make_release(model="strange--north"), "south": other})


def test_a_release_whose_variants_are_not_its_own_is_not_published(install: Settings) -> None:
    """Every file is held against the manifest before anything is signed."""
    release = _grouped(install, "mixed")
    files = {**release.variants, "south.graph.onnx": release.variants["north.graph.onnx"]}
    with pytest.raises(ReleaseError, match=r"south\.graph\.onnx"):
        releases.publish(install, Release(release.manifest, release.graph, release.canary, files))


def test_a_variants_name_is_no_way_out_of_its_folder(install: Settings) -> None:
    """It begins the names of files."""
    manifest = decode_manifest(_grouped(install, "path").manifest)
    evil = tuple(msgspec.structs.replace(variant, name="../up") for variant in manifest.variants)
    with pytest.raises(ReleaseError, match="expected at most"):
        decode_manifest(encode_manifest(msgspec.structs.replace(manifest, variants=evil)))
    assert manifest.narrowed(manifest.variants[0]).names[0] == f"north.{GRAPH}"


def _recipe(name: str) -> Recipe:
    return load(Recipe, TEXT.replace("NAME", name) + GROUPS, f"{name}.yaml")


def _grouped(settings: Settings, name: str, south: int = 1) -> Release:
    """Return a release of two groups, the south's of this version."""
    versions = {"north": 1, "south": south}
    built = {
        site: make_release(model=f"{name}--{site}", version=version, bias=BIAS[site] * version)
        for site, version in versions.items()
    }
    return combine(settings, _recipe(name), built)
