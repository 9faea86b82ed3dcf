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
from fieldloop.domain.recipe import load_recipe
from fieldloop.stores import broker, fleet, registry, rollouts
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.runs import REFERENCE

FOUND: Final = "fieldloop.drift.found"
SHOWN: Final = 10  # targets whose reports are no use, named with the reason


@dataclass(frozen=True)
class Comparison:
    """How far the targets' data have come from the training's.

    Attributes:
        recipe: name of the recipe.
        version: registered version that most targets run; None where none of the recipe runs.
        targets: how many run it.
        unusable: targets whose last report cannot be used, each with the reason; they are left out.
        limit: distance above which a channel has drifted.
        retrain: the recipe asks for a drift to be announced.
        findings: a channel each, the predictions last; none where the version carries no reference.
    """

    recipe: str
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
def compare_with_training(recipe: str) -> Comparison:
    """Hold the targets' sketches against the training's, and announce a drift where the recipe asks for it."""
    compared = compare(Settings(), recipe)
    if compared.retrain and drifted(compared.findings):
        announce(compared)
    return compared


def compare(settings: Settings, recipe_name: str) -> Comparison:
    """Merge what the targets report of the release that most of them run, and hold it against its reference.

    Raises:
        DocumentError: there is no such recipe.
        StoreError: lake, broker or registry do not answer.
    """
    recipe = load_recipe(settings.root, recipe_name)
    rule = recipe.drift
    heard = asyncio.run(_heard(settings))
    unusable = tuple(sorted(heard.unusable.items()))
    seen = gather(recipe.name, (sighting.report for sighting in heard.sightings.values()))
    if seen is None:
        return Comparison(recipe.name, None, 0, rule.limit, rule.retrain, (), unusable)
    reference = _reference(settings, recipe.name, seen.running.version)
    findings = hold_against(reference, seen.distributions, rule) if reference else ()
    return Comparison(recipe.name, seen.running.version, seen.targets, rule.limit, rule.retrain, findings, unusable)


def announce(compared: Comparison) -> None:
    """Emit the event, which Prefect sends in the background and before the process ends."""
    found = drifted(compared.findings)
    emit_event(
        FOUND,
        resource={
            "prefect.resource.id": f"fieldloop.recipe.{compared.recipe}",
            "prefect.resource.name": compared.recipe,
        },
        payload={
            "recipe": compared.recipe,
            "version": compared.version,
            "channels": [finding.channel for finding in found],
            "distances": [finding.distance for finding in found],
        },
    )


def describe(compared: Comparison) -> str:
    """Return the comparison as Markdown for a person."""
    return "\n\n".join([_compared(compared), *_left_out(compared.unusable)])


def figures(compared: Comparison) -> dict[str, object]:
    """Return how many distributions were judged, which have drifted, and how many reports were no use, for programs."""
    judged = [f for f in compared.findings if f.verdict in (Verdict.STEADY, Verdict.DRIFTED)]
    drifts = ", ".join(f.channel for f in drifted(compared.findings))
    return {"distributions": len(judged), "drifted": drifts, "unusable_reports": len(compared.unusable)}


def _left_out(unusable: Sequence[tuple[str, str]]) -> list[str]:
    """Say whose reports were left out, and why."""
    if not unusable:
        return []
    named = "; ".join(f"{target}: {reason}" for target, reason in unusable[:SHOWN])
    more = f"; and {len(unusable) - SHOWN:,} more" if len(unusable) > SHOWN else ""
    return [f"**{len(unusable):,}** targets' last reports cannot be used and are left out ({named}{more})."]


def _compared(compared: Comparison) -> str:
    if compared.version is None:
        return f"No target runs a release of `{compared.recipe}`: nothing to hold against the training."
    whose = f"version {compared.version}, which {compared.targets} targets run"
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


async def _heard(settings: Settings) -> rollouts.Heard:
    """The last word of every target."""
    names = [target.name for target in fleet.targets(Lake(settings))]
    async with broker.platform(settings) as (_, js):
        return await rollouts.heard(js, names)


def _reference(settings: Settings, model: str, number: int) -> Distributions | None:
    """What the training of a version logged; None where it is not registered here or too old to have any."""
    version = registry.find(settings, model, number)
    if version is None or not registry.holds(settings, version, REFERENCE):
        return None
    return msgspec.json.decode(registry.artifact(settings, version, REFERENCE), type=Distributions)
