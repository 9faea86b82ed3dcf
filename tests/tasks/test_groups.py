"""A model a group, all the way: trained, registered, one release, two real agents that each run their own graph."""

from collections.abc import Iterator

import polars as pl
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from fieldloop.cli.rehearse import run
from fieldloop.domain.lineage import Node
from fieldloop.domain.recipe import load_recipe
from fieldloop.domain.release import decode_manifest
from fieldloop.domain.rollout.plan import Plan
from fieldloop.stores import fleet, releases
from fieldloop.stores.fleet import Target
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from flows.deploy import deploy
from infra.local.identities import enrol_targets
from infra.rehearsal.faults import Faults
from infra.rehearsal.stage import Cast
from tasks.deploy import DeployResult
from tasks.drift import compare, describe
from tasks.lineage import lineage
from tasks.register import challenge, enter, prove
from tasks.train import begin, train_candidate
from tests.edge.targets import Gateway
from tests.tasks.farm import FarmSettings, farm, tables

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-groups"
GROUPS = "groups: {label: region, of: {coast: {include: [T1]}, hills: {include: [T2]}}}\n"
REGIONS = {"coast": "T1", "hills": "T2"}
PROFILE = "senvion-mm82"
DEPLOYED = ["fleet=groups"]


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's settings, its recipe with a group a turbine, a model of each group trained and registered."""
    settings = farm(platform, tmp_path_factory.mktemp("groups"), NAME)
    recipe = settings.root / "recipes" / f"{NAME}.yaml"
    recipe.write_text(recipe.read_text() + GROUPS)
    for member, device in zip(load_recipe(settings.root, NAME).members, REGIONS.values(), strict=True):
        grid, windows = (table.filter(pl.col("device") == device) for table in tables(member))
        lake = Lake(settings)
        versions = lake.replace(f"grid/{member.name}", grid), lake.replace(f"windows/{member.name}", windows)
        training = begin(settings, member.name, ["ridge"], *versions, 7)
        proved = prove(settings, member.name, train_candidate(settings, training, "ridge", 7).run_id)
        challenge(settings, proved, enter(settings, proved).version)
    return settings


@pytest.fixture(scope="module")
def gateways(platform: Settings) -> Iterator[dict[str, Gateway]]:
    """A target of each group, with its agent running."""
    made, lake = {}, Lake(platform)
    for region in REGIONS:
        target, device = f"groups-{region}", f"groups-{region}-device"
        fleet.add_devices(lake, [device], PROFILE)
        fleet.add_targets(platform, lake, [Target(target, (device,), (f"region={region}", *DEPLOYED))])
        enrol_targets(platform, {target: {device: PROFILE}})
        path = platform.identity_folder("target", target) / "agent.json"
        made[region] = Gateway(platform, target, device, path)
        made[region].start()
    yield made
    for gateway in made.values():
        gateway.stop()
    fleet.remove_targets(platform, lake, [gateway.target for gateway in made.values()])


@pytest.fixture(scope="module")
def deployed(settings: FarmSettings, gateways: dict[str, Gateway]) -> Iterator[DeployResult]:
    """The groups' models, rolled out by the flow to both."""
    with pytest.MonkeyPatch.context() as patch, temporary_settings({PREFECT_API_URL: settings.prefect_api}):
        patch.setattr(Settings, "root", property(lambda _: settings.root))
        for name, value in settings.environment().items():
            patch.setenv(name, value)
        yield deploy(NAME, labels=DEPLOYED, plan=Plan())


def test_each_target_runs_its_groups_graph(
    settings: FarmSettings, deployed: DeployResult, gateways: dict[str, Gateway]
) -> None:
    """One release, two graphs, and the proof of each target is that of its own group's canary."""
    assert (deployed.targets, deployed.proved, deployed.exact) == (2, 2, 2)
    manifest = decode_manifest(releases.signed_manifest(settings, f"{NAME}/{deployed.version}"))
    wanted = {variant.name: variant.output_hash for variant in manifest.variants}
    assert len(set(wanted.values())) == 2
    for region, gateway in gateways.items():
        report = gateway.await_report(lambda report: report.running is not None)
        assert report.running is not None
        assert (report.running.release, report.running.proof.output_hash) == (deployed.release, wanted[region])


def test_lineage_tells_the_groups_apart(settings: FarmSettings, deployed: DeployResult) -> None:
    """From a target back to the model of its group alone, and from that model to this target alone."""
    (release,) = lineage(settings, "groups-hills").origins
    assert [node.name for node in release.children] == [f"{NAME}--hills/1"]
    (used,) = [node for node in lineage(settings, f"{NAME}--coast/1").uses if node.kind == "release"]
    assert used.name == deployed.release
    assert _targets(used) == ["groups-coast"]
    whole = lineage(settings, deployed.release)
    assert [node.name for node in whole.origins] == [f"{NAME}--coast/1", f"{NAME}--hills/1"]
    assert [node.name for node in whole.uses if node.kind == "target"] == ["groups-coast", "groups-hills"]


def test_drift_is_judged_against_each_groups_own_training(settings: FarmSettings, deployed: DeployResult) -> None:
    """A comparison a group: its own version's reference, and its own target."""
    coast, hills = compare(settings, NAME)
    assert [(each.model, each.version, each.targets) for each in (coast, hills)] == [
        (f"{NAME}--coast", 1, 1),
        (f"{NAME}--hills", 1, 1),
    ]
    assert [finding.channel for finding in coast.findings][:3] == ["wind_speed", "pitch_angle", "outdoor_temperature"]
    assert f"`{NAME}--hills` version 1, which 1 targets run" in describe([coast, hills])


def test_a_rehearsal_takes_each_simulated_target_its_groups_graph(
    settings: FarmSettings, deployed: DeployResult
) -> None:
    """By the real flow, on a stage of its own; one with a faulty runtime is no target of either group in the end."""
    cast = Cast(6, processes=1, heartbeat_s=1.0, faults=Faults(faulty=0.2), seed=1)
    plan = settings.root / "plan.yaml"
    plan.write_text("limits: {deadline_s: 20, failed: 0.5}\n")
    outcome = run(settings, NAME, "champion", None, cast, plan)
    assert (outcome.phase, outcome.targets) == ("completed", 6)
    assert outcome.running == sum(outcome.groups.values()) < 6
    assert set(outcome.groups) == set(REGIONS)
    assert min(outcome.groups.values()) > 0


def _targets(node: Node) -> list[str]:
    return [child.name for child in node.children if child.kind == "target"]
