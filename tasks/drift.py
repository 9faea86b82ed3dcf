"""Drift: the targets' sketches of the release that runs, held against those that its training logged.

A drift announces itself as the Prefect event `fieldloop.drift.found`, of which the deployment of *lifecycle* makes a
run for the recipe, at most one within the trigger's time (`prefect.yaml`). What that deploys begins to count anew.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from prefect import task
from prefect.events import emit_event

from fieldloop.domain.drift import Distributions, Finding, Verdict, drifted, gather, hold_against
from fieldloop.domain.errors import ReleaseError, StoreError
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.release import MANIFEST, release_folder
from fieldloop.domain.rollout import Running
from fieldloop.stores import broker, fleet, registry, releases, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.runs import REFERENCE

FOUND: Final = "fieldloop.drift.found"
SHOWN: Final = 10  # targets whose reports are no use, named with the reason


@dataclass(frozen=True)
class Comparison:
    """How far the targets' data have come from the training's.

    Attributes:
        recipe: name of the recipe; where it has groups, each has a comparison of its own.
        model: the registered model: the recipe's, or its group's.
        version: registered version that most targets run; None where none runs.
        targets: how many run it.
        unusable: targets whose last report cannot be used, each with the reason; they are left out.
        limit: distance above which a channel has drifted.
        retrain: the recipe asks for a drift to be announced.
        findings: a channel each, the predictions last; none where the version carries no reference.
    """

    recipe: str
    model: str
    version: int | None
    targets: int
    limit: float
    retrain: bool
    findings: tuple[Finding, ...]
    unusable: tuple[tuple[str, str], ...] = ()


@task(
    name="compare with training",
    retries=2,
    retry_delay_seconds=5,
    timeout_seconds=600,
)
def compare_with_training(recipe: str) -> tuple[Comparison, ...]:
    """Hold the targets' sketches against the training's, and announce a drift where the recipe asks for it."""
    compared = compare(Settings(), recipe)
    if any(each.retrain and drifted(each.findings) for each in compared):
        announce(compared)
    return compared


def compare(settings: Settings, recipe_name: str) -> tuple[Comparison, ...]:
    """Merge what the targets report of the release that most of them run, and hold it against its reference.

    Where the recipe has groups, each group's targets are held against what their own model was learnt from.

    Raises:
        DocumentError: there is no such recipe.
        StoreError: lake, broker or registry do not answer.
    """
    recipe = load_recipe(settings.root, recipe_name)
    targets = fleet.targets(Lake(settings))
    heard = asyncio.run(_heard(settings, [target.name for target in targets]))
    if recipe.groups is None:
        return (_compared_with(settings, recipe, None, heard),)
    found = []
    for group in recipe.groups.of:
        label = f"{recipe.groups.label}={group}"
        found.append(_compared_with(settings, recipe, group, heard.of({t.name for t in targets if label in t.labels})))
    return tuple(found)


def _compared_with(settings: Settings, recipe: Recipe, group: str | None, heard: rollouts.Heard) -> Comparison:
    rule, unusable = recipe.drift, tuple(sorted(heard.unusable.items()))
    model = recipe.member(group).name if group else recipe.name
    seen = gather(recipe.name, (sighting.report for sighting in heard.sightings.values()))
    if seen is None:
        return Comparison(recipe.name, model, None, 0, rule.limit, rule.retrain, (), unusable)
    version = _version_of(settings, seen.running, group) if group else seen.running.version
    reference = None if version is None else _reference(settings, model, version)
    findings = hold_against(reference, seen.distributions, rule) if reference else ()
    number = seen.running.version if version is None else version
    return Comparison(recipe.name, model, number, seen.targets, rule.limit, rule.retrain, findings, unusable)


def _version_of(settings: Settings, running: Running, group: str) -> int | None:
    """Return the version of a group's model in the release that its targets run; None where it is not known here."""
    try:
        path = f"{release_folder(running.model, running.version)}/{MANIFEST}"
        manifest = releases.manifest_of(settings, releases.Published(running.release, path, new=False))
    except (ReleaseError, StoreError):  # what a target says need not be so
        return None
    return next((variant.version for variant in manifest.variants if variant.name == group), None)


def announce(compared: Sequence[Comparison]) -> None:
    """Emit the event, which Prefect sends in the background and before the process ends: one for all groups."""
    found = [(each, finding) for each in compared for finding in drifted(each.findings)]
    recipe = compared[0].recipe
    emit_event(
        FOUND,
        resource={"prefect.resource.id": f"fieldloop.recipe.{recipe}", "prefect.resource.name": recipe},
        payload={
            "recipe": recipe,
            "models": [f"{each.model}/{each.version}" for each, _ in found],
            "channels": [finding.channel for _, finding in found],
            "distances": [finding.distance for _, finding in found],
        },
    )


def describe(compared: Sequence[Comparison]) -> str:
    """Return the comparisons as Markdown for a person."""
    return "\n\n".join(text for each in compared for text in (_compared(each), *_left_out(each.unusable)))


def figures(compared: Sequence[Comparison]) -> dict[str, object]:
    """Return how many distributions were judged, which have drifted, and how many reports were no use, for programs."""
    every = [finding for each in compared for finding in each.findings]
    judged = [finding for finding in every if finding.verdict in (Verdict.STEADY, Verdict.DRIFTED)]
    drifts = [
        finding.channel if each.model == each.recipe else f"{each.model}: {finding.channel}"
        for each in compared
        for finding in drifted(each.findings)
    ]
    unusable = sum(len(each.unusable) for each in compared)
    return {"distributions": len(judged), "drifted": ", ".join(drifts), "unusable_reports": unusable}


def _left_out(unusable: Sequence[tuple[str, str]]) -> list[str]:
    """Say whose reports were left out, and why."""
    if not unusable:
        return []
    named = "; ".join(f"{target}: {reason}" for target, reason in unusable[:SHOWN])
    more = f"; and {len(unusable) - SHOWN:,} more" if len(unusable) > SHOWN else ""
    return [f"**{len(unusable):,}** targets' last reports cannot be used and are left out ({named}{more})."]


def _compared(compared: Comparison) -> str:
    if compared.version is None:
        return f"No target runs a release of `{compared.model}`: nothing to hold against the training."
    of = "version" if compared.model == compared.recipe else f"`{compared.model}` version"
    whose = f"{of} {compared.version}, which {compared.targets} targets run"
    if not compared.findings:
        return f"The training of {whose}, left no reference to see drift by: train again."
    found = drifted(compared.findings)
    then = "trains anew" if compared.retrain else "is only shown, as the recipe asks"
    lines = [
        f"**{len(found)} of {len(compared.findings)}** distributions have drifted from the training of {whose} "
        f"(limit {compared.limit:g}; a drift {then}).",
        "",
        "| channel | values | distance | verdict |",
        "|---|---:|---:|---|",
    ]
    lines += [f"| {f.channel} | {f.values:,} | {f.distance:.3f} | {f.verdict} |" for f in compared.findings]
    return "\n".join(lines)


async def _heard(settings: Settings, names: Sequence[str]) -> rollouts.Heard:
    """The last word of every target."""
    async with broker.platform(settings) as (_, js):
        return await rollouts.heard(js, names)


def _reference(settings: Settings, model: str, number: int) -> Distributions | None:
    """What the training of a version logged; None where it is not registered here or too old to have any."""
    version = registry.find(settings, model, number)
    if version is None or not registry.holds(settings, version, REFERENCE):
        return None
    return msgspec.json.decode(registry.artifact(settings, version, REFERENCE), type=Distributions)
