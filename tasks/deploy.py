"""Deployment: a registered version as a signed release (`release_version`); `tasks.rollout` takes it to the targets."""

from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np
import onnxruntime
from prefect import task

from fieldloop.domain.alerts import Limits
from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import load_recipe, recipe_names
from fieldloop.domain.release import (
    Budget,
    Canary,
    File,
    Manifest,
    Release,
    decode_canary,
    encode_canary,
    encode_manifest,
    output_hash,
)
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.windows import WindowSpec
from fieldloop.edge import model as edge_model
from fieldloop.stores import registry, releases
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.groups import combine
from tasks.retries import may_pass
from tasks.tags import LINEAGE


@dataclass(frozen=True)
class Released:
    """A version as a release in the repository; `new` where it was not there before."""

    model: str
    version: int
    run_id: str
    digest: str
    manifest: str
    new: bool

    @property
    def published(self) -> releases.Published:
        """The release's place in the repository."""
        return releases.Published(self.digest, self.manifest, self.new)


@dataclass(frozen=True)
class DeployResult:
    """What a deployment came to.

    Attributes:
        recipe: the use case.
        model: registered model.
        version: its version.
        release: digest of the release.
        rollout: name of the rollout.
        targets: how many targets were asked.
        proved: how many of them run the release, proved.
        exact: how many gave the canary's outputs bit for bit.
        new: the release was not in the repository before.
        seconds: from the plan to the last gate.
    """

    recipe: str
    model: str
    version: int
    release: str
    rollout: str
    targets: int
    proved: int
    exact: int
    new: bool
    seconds: float


class _Target(msgspec.Struct, frozen=True):
    """The version's `release/target.json`."""

    metric: str
    unit: str
    tolerance: float
    budget: Budget = Budget()
    alerts: Limits | None = None


@task(name="release version", retries=2, retry_delay_seconds=5, retry_condition_fn=may_pass, timeout_seconds=600)
def release_version(recipe: str, version: str) -> Released:
    """Build the release of a registered version, by number or alias, and publish it."""
    return release(Settings(), recipe, version)


def release(settings: Settings, recipe: str, version: str) -> Released:
    """Build the release of a version and publish it; the same version again changes nothing.

    Raises:
        StoreError: there is no such version, or a store refuses.
        ReleaseError: the version's graph does not run on its own canary, or the release was revoked.
    """
    built = _built(settings, recipe, version)
    manifest = built.open(built.digest)
    published = releases.publish(settings, built)
    return Released(
        manifest.model, manifest.version, manifest.run_id, published.digest, published.manifest, published.new
    )


def _built(settings: Settings, name: str, version: str) -> Release:
    """Build a version's release; where the recipe has groups, one that holds the graph of each group's version."""
    recipe = load_recipe(settings.root, name) if name in recipe_names(settings.root) else None
    if recipe is None or recipe.groups is None:
        return build(settings, name, registry.version(settings, name, version))
    if version.isdecimal():
        raise ReleaseError(
            f"recipe {name} has a model a group, each with numbers of its own: expected `champion` or `challenger`, "
            f"got {version}; point the alias to the wanted version of each"
        )
    members = {group: recipe.member(group).name for group in recipe.groups.of}
    built = {
        group: build(settings, name, registry.version(settings, member, version)) for group, member in members.items()
    }
    return combine(settings, recipe, built)


def build(settings: Settings, recipe: str, version: ModelVersion) -> Release:
    """Make a release from what the version's run carries; its expected outputs are those that the edge runtime gives.

    Raises:
        StoreError: the run lacks an artifact.
        ReleaseError: the graph does not run on the canary.
    """
    graph = registry.graph(settings, version)
    inputs = decode_canary(registry.artifact(settings, version, "release/canary.json")).inputs
    outputs = edge_model.Model.load(graph).run(inputs)
    canary = encode_canary(Canary(inputs, outputs))
    target = msgspec.json.decode(registry.artifact(settings, version, "release/target.json"), type=_Target)
    window = registry.artifact(settings, version, "release/window.json")
    profiles = registry.artifact(settings, version, "release/profiles.json")
    features = registry.artifact(settings, version, "release/features.json")
    manifest = Manifest(
        recipe=recipe,
        model=version.name,
        version=version.version,
        run_id=version.run_id,
        window=msgspec.json.decode(window, type=WindowSpec),
        profiles=msgspec.json.decode(profiles, type=dict[str, Profile]),
        target=target.metric,
        unit=target.unit,
        features=msgspec.json.decode(features, type=tuple[str, ...]),
        graph=File.of(graph),
        canary=File.of(canary),
        output_hash=output_hash(outputs),
        tolerance=target.tolerance,
        runtime={"numpy": np.__version__, "onnxruntime": onnxruntime.__version__},
        lineage={k.removeprefix(LINEAGE): v for k, v in version.tags.items() if k.startswith(LINEAGE)},
        created_at=datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(),
        budget=target.budget,
        alerts=target.alerts,
    )
    return Release(encode_manifest(manifest), graph, canary)


def plan_of(recipe: str) -> Plan:
    """Return a recipe's own plan for rollouts."""
    return load_recipe(Settings().root, recipe).rollout
