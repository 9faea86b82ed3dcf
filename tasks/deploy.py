"""Deployment: a registered version as a signed release on edge targets, each with its proof of run.

Order of steps: build the release and publish it (`release_version`), choose targets (`select_targets`), write what they
should run (`ask_targets`), follow their reports until each is proved, failed or silent (`await_proofs`), and fail where
one is not proved (`require_all_proved`).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec
import numpy as np
import onnxruntime
from prefect import get_run_logger, task
from prefect.runtime import flow_run

from fieldloop.domain.errors import ReleaseError
from fieldloop.domain.profile import Profile
from fieldloop.domain.release import (
    Canary,
    File,
    Manifest,
    Release,
    decode_canary,
    encode_canary,
    encode_manifest,
    output_hash,
)
from fieldloop.domain.rollout import Clock, Desired, Standing, State, judge, require_proved, settled
from fieldloop.domain.windows import WindowSpec
from fieldloop.edge import model as edge_model
from fieldloop.stores import broker, fleet, registry, releases
from fieldloop.stores.lake import Lake
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings

POLL_S: Final = 0.5
SILENCE_S: Final = 60.0  # four heartbeats of an agent
LINEAGE: Final = "lineage."  # tags of a version that say where it comes from
SHOWN_TARGETS: Final = 200  # rows of the artifact; those that are not proved come first
LONGEST_DEADLINE_S: Final = 86_400


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
        targets: how many targets were asked.
        proved: how many of them run the release, proved.
        exact: how many gave the canary's outputs bit for bit.
        new: the release was not in the repository before.
        seconds: from asking the targets to the last proof.
    """

    recipe: str
    model: str
    version: int
    release: str
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


@task(name="release version", retries=2, retry_delay_seconds=5, timeout_seconds=600, tags=["mlflow", "store", "broker"])
def release_version(recipe: str, version: str) -> Released:
    """Build the release of a registered version, by number or alias, and publish it."""
    return release(Settings(), recipe, version)


@task(name="select targets", retries=2, retry_delay_seconds=5, timeout_seconds=120, tags=["lake"])
def select_targets(released: Released, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the targets that the release is for and that bear all these labels."""
    settings = Settings()
    lake = Lake(settings)
    profiles = releases.manifest_of(settings, released.published).profiles
    served = {device for device, profile in fleet.devices(lake).items() if profile in profiles}
    return select(fleet.targets(lake), labels, served)


@task(name="ask targets", retries=2, retry_delay_seconds=5, timeout_seconds=600, tags=["broker"])
def ask_targets(released: Released, targets: Sequence[str]) -> Desired:
    """Write the release as what these targets should run."""
    rollout = str(flow_run.get_name() or "by hand")
    return asyncio.run(_ask(Settings(), released, targets, rollout))


@task(name="await proofs", timeout_seconds=LONGEST_DEADLINE_S + 600, tags=["broker"])
def await_proofs(
    released: Released, desired: Desired, targets: Sequence[str], deadline_s: float
) -> tuple[Standing, ...]:
    """Follow the targets' reports until each is proved, failed or, at the deadline, silent."""
    return follow(Settings(), released, desired, targets, deadline_s, get_run_logger())


def require_all_proved(standings: Sequence[Standing]) -> None:
    """Pass only when every target is proved.

    Raises:
        ReleaseError: names every other target with its state and reason.
    """
    require_proved(standings)


def release(settings: Settings, recipe: str, version: str) -> Released:
    """Build the release of a version and publish it; the same version again changes nothing.

    Raises:
        StoreError: there is no such version, or a store refuses.
        ReleaseError: the version's graph does not run on its own canary.
    """
    found = registry.version(settings, recipe, version)
    built = build(settings, recipe, found)
    published = releases.publish(settings, built)
    return Released(found.name, found.version, found.run_id, published.digest, published.manifest, published.new)


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
    )
    return Release(encode_manifest(manifest), graph, canary)


def select(targets: Sequence[fleet.Target], labels: Sequence[str], devices: Collection[str]) -> tuple[str, ...]:
    """Return the names of the targets that bear all these labels (any where none are given) and serve a device.

    Args:
        targets: the fleet's.
        labels: each `key=value`.
        devices: those whose profiles the release can read.

    Raises:
        ReleaseError: there is none.
    """
    serving = [target for target in targets if set(target.devices) & set(devices)]
    chosen = tuple(target.name for target in serving if set(labels) <= set(target.labels))
    if not chosen:
        wanted = f" with labels {', '.join(labels)}" if labels else ""
        raise ReleaseError(
            f"expected edge targets{wanted} that serve devices of the release's profiles, got none of {len(targets)}: "
            "enrol them with `fieldloop target add`"
        )
    return chosen


def follow(
    settings: Settings,
    released: Released,
    desired: Desired,
    targets: Sequence[str],
    deadline_s: float,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> tuple[Standing, ...]:
    """Poll the targets' reports until none is pending, at most `deadline_s`; logs whenever the counts change.

    Raises:
        StoreError: the manifest or the reports cannot be read.
    """
    manifest = releases.manifest_of(settings, released.published)
    return asyncio.run(_follow(settings, manifest, desired, targets, deadline_s, log))


def describe(released: Released, standings: Sequence[Standing], seconds: float, mlflow_url: str) -> str:
    """Return the artifact: what was deployed and where each target stands, as Markdown."""
    counts = _counts(standings)
    shown = sorted(standings, key=lambda s: (s.state is State.PROVED, s.target))[:SHOWN_TARGETS]
    lines = [
        f"**{released.model}** version [{released.version}]({mlflow_url}), release `{released.digest[:12]}`: "
        f"{counts} in {seconds:.1f} s.",
        "",
        "| target | state | runs | canary outputs | reason |",
        "|---|---|---|---|---|",
        *(_row(standing) for standing in shown),
    ]
    if len(shown) < len(standings):
        lines += ["", f"{len(standings) - len(shown)} more targets are proved."]
    return "\n".join(lines)


def summarize(recipe: str, released: Released, standings: Sequence[Standing], seconds: float) -> DeployResult:
    """Return the figures of a deployment."""
    proved = [standing for standing in standings if standing.state is State.PROVED]
    exact = sum(standing.proof is not None and standing.proof.exact for standing in proved)
    return DeployResult(
        recipe,
        released.model,
        released.version,
        released.digest,
        len(standings),
        len(proved),
        exact,
        released.new,
        seconds,
    )


def version_url(released: Released) -> str:
    """Return the MLflow page of the version."""
    version = ModelVersion(released.model, released.version, released.run_id, (), {}, 0)
    return registry.version_url(Settings(), version)


async def _ask(settings: Settings, released: Released, targets: Sequence[str], rollout: str) -> Desired:
    async with broker.platform(settings) as (_, js):
        return await releases.desire(js, targets, released.published, rollout)


async def _follow(
    settings: Settings,
    manifest: Manifest,
    desired: Desired,
    targets: Sequence[str],
    deadline_s: float,
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
) -> tuple[Standing, ...]:
    deadline_us = _now_us() + round(deadline_s * 1e6)
    counts = ""
    async with broker.platform(settings) as (_, js):
        while True:
            seen = await releases.sightings(js, targets)
            clock = Clock(_now_us(), deadline_us, round(SILENCE_S * 1e6))
            standings = tuple(judge(target, desired, manifest, seen.get(target), clock) for target in targets)
            if _counts(standings) != counts:
                counts = _counts(standings)
                log.info("release %s: %s", desired.release[:12], counts)
            if settled(standings):
                return standings
            await asyncio.sleep(POLL_S)


def _counts(standings: Sequence[Standing]) -> str:
    """Say how many targets are in each state, for instance `3 of 4 proved, 1 failed`."""
    counts = Counter(standing.state for standing in standings)
    others = "".join(f", {counts[state]} {state}" for state in State if state is not State.PROVED and counts[state])
    return f"{counts[State.PROVED]} of {len(standings)} proved{others}"


def _row(standing: Standing) -> str:
    runs = f"`{standing.release[:12]}`" if standing.release else "nothing"
    outputs = f"`{standing.proof.output_hash[:12]}`" if standing.proof else ""
    reason = standing.reason.replace("|", "\\|").replace("\n", " ")
    return f"| {standing.target} | {standing.state} | {runs} | {outputs} | {reason} |"


def _now_us() -> int:
    return time.time_ns() // 1000
