"""Challenge: a version against the champion on the same held-out windows, and what follows for the aliases.

    compare → keep the verdict with the run → (ask a person, `tasks.approval`) → move the aliases

A verdict is kept with what it was reached by (champion and rule), so that the same question is answered once.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final, cast

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from fieldloop.domain.bootstrap import blocks
from fieldloop.domain.errors import StoreError
from fieldloop.domain.metrics import judge as figures_of
from fieldloop.domain.promotion import Rivals, compare, decide
from fieldloop.domain.recipe import Metric, Recipe, load_recipe
from fieldloop.domain.windows import WindowSpec
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.examples import Examples, Versions, read
from tasks.matrix import apply
from tasks.origin import RECIPE
from tasks.tags import GRID_VERSION, WINDOWS_VERSION

VERDICT: Final = "evaluation/verdict.json"
STANDING: Final = "promotion"  # tags of a version: how its challenge ended,
REASON: Final = "promotion.reason"  # why,
BASIS: Final = "promotion.basis"  # and a digest of the champion and the rule that it was reached by
_WINDOW: Final = "release/window.json"
_UNLOADABLE: Final = (
    StoreError, ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip


class Outcome(StrEnum):
    """How a challenge ended."""

    FIRST = "first"
    CHAMPION = "champion already"
    WON = "won"
    LOST = "lost"
    INCOMPARABLE = "not comparable"
    APPROVED = "approved"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Verdict:
    """The comparison of a version with the champion on the same held-out windows.

    Attributes:
        outcome: how it ended.
        promoted: whether the version becomes champion by it.
        reason: in words.
        metrics: of the version.
        champion: number of the champion that it was compared with; None where there was none.
        champion_metrics: of that champion, on the same windows; None where it could not be run on them.
        basis: digest of what the verdict follows from.
    """

    outcome: Outcome
    promoted: bool
    reason: str
    metrics: dict[Metric, float]
    champion: int | None
    champion_metrics: dict[Metric, float] | None
    basis: str

    @property
    def alias(self) -> str:
        """The alias that the version has by it."""
        return "champion" if self.promoted else "challenger"


def judge(settings: Settings, version: ModelVersion) -> Verdict:
    """Compare a version with the champion, on the held-out windows of the version's own table versions; once.

    What was judged before against the same champion by the same rule is not judged again.
    """
    recipe = load_recipe(settings.root, version.name)
    champion = registry.find(settings, version.name, "champion")
    basis = _digest(recipe, champion)
    own = champion is not None and champion.version == version.version
    if BASIS in version.tags and (own or version.tags[BASIS] == basis):
        kept = _kept(settings, version)
        if kept.promoted or not own:
            return kept
    found = examples_of(settings, recipe, version.tags)
    verdict = _compared(settings, recipe, version, champion, found, basis)
    keep(settings, version, verdict)
    return verdict


def keep(settings: Settings, version: ModelVersion, verdict: Verdict) -> None:
    """Keep a verdict with the version's run, and its outcome among the version's tags."""
    mlflow = registry.client(settings)
    mlflow.log_text(version.run_id, json.dumps(asdict(verdict), indent=2), VERDICT)
    for key, value in ((STANDING, verdict.outcome.value), (REASON, verdict.reason), (BASIS, verdict.basis)):
        mlflow.set_model_version_tag(version.name, str(version.version), key, value)


def settle(settings: Settings, version: ModelVersion, verdict: Verdict) -> None:
    """Move the aliases as a verdict says; where they are there already, a later challenger keeps its own."""
    if verdict.promoted and ("champion" not in version.aliases or "challenger" in version.aliases):
        registry.point(settings, "champion", version)
        registry.remove(settings, "challenger", version.name)


def examples_of(settings: Settings, recipe: Recipe, tags: Mapping[str, str]) -> Examples:
    """Return the examples of the table versions that a run was trained from."""
    return read(Lake(settings), recipe, Versions(int(tags[GRID_VERSION]), int(tags[WINDOWS_VERSION])))


def _compared(
    settings: Settings,
    recipe: Recipe,
    version: ModelVersion,
    champion: ModelVersion | None,
    found: Examples,
    basis: str,
) -> Verdict:
    """Run both graphs on the same windows, as far as the champion can be run there."""
    test = found.chosen("test")
    ours = apply(registry.graph(settings, version), found, test)
    metrics = figures_of(recipe, found.target[test], ours)
    if champion is None:
        return Verdict(Outcome.FIRST, True, "there was no champion before", metrics, None, None, basis)
    if champion.version == version.version:
        return Verdict(Outcome.CHAMPION, True, "is the champion by hand", metrics, None, None, basis)
    try:
        difference = _other_schema(settings, recipe, version, champion)
        theirs = None if difference else apply(registry.graph(settings, champion), found, test)
    except _UNLOADABLE as exc:
        difference, theirs = f"can no longer be loaded ({exc})", None
    if theirs is None:
        reason = f"champion {champion.version} {difference}; move the alias by hand if this version is to replace it"
        return Verdict(Outcome.INCOMPARABLE, False, reason, metrics, champion.version, None, basis)
    fair, caveat = _unseen(settings, champion, found, test)
    if not fair.any():
        reason = f"champion {champion.version} has learnt from every held-out window; hold out newer ones"
        return Verdict(Outcome.INCOMPARABLE, False, reason, metrics, champion.version, None, basis)
    chosen = test[fair]
    of = blocks(recipe, found.device[chosen], found.end_us[chosen], found.run_us[chosen])
    rivals = Rivals(found.devices, found.device[chosen], found.target[chosen], ours[fair], theirs[fair])
    compared = compare(recipe, rivals, of)
    won, reason = decide(recipe.promotion, compared)
    reason = f"against champion {champion.version}: {reason}{caveat}"
    outcome = Outcome.WON if won else Outcome.LOST
    return Verdict(outcome, won, reason, compared.challenger, champion.version, compared.champion, basis)


def _other_schema(settings: Settings, recipe: Recipe, version: ModelVersion, champion: ModelVersion) -> str:
    """Say in what the champion reads or predicts something else; nothing where it does not."""
    ours, theirs = (
        msgspec.json.decode(registry.artifact(settings, each, _WINDOW), type=WindowSpec) for each in (version, champion)
    )
    names = [name for name in WindowSpec.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
    if names:
        named = ", ".join(f"{name} {getattr(theirs, name)}, not {getattr(ours, name)}" for name in names)
        return f"reads windows of another schema ({named})"
    target = json.loads(registry.artifact(settings, champion, RECIPE))["target"]
    own = recipe.target.model_dump(mode="json")
    asked = [name for name in own if name != "labels" and target.get(name) != own[name]]
    if asked:
        named = ", ".join(f"{name} {target.get(name)}, not {own[name]}" for name in asked)
        return f"predicts something else (target: {named})"
    return ""


def _unseen(
    settings: Settings, champion: ModelVersion, found: Examples, test: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], str]:
    """Which held-out windows ([K] bool) share nothing with what the champion learnt from, and what to say of it."""
    table = f"windows/{champion.name}"
    try:
        index = Lake(settings).scan(table, int(champion.tags[WINDOWS_VERSION]))
        learnt = index.filter(pl.col("split").is_in(["train", "validation"])).select("device", "end_time").collect()
    except StoreError:
        return np.ones(len(test), dtype=bool), "; what the champion learnt from is no longer in the lake to be left out"
    recipe, fair = found.recipe, np.ones(len(test), dtype=bool)
    reach = (recipe.window.length + recipe.lookahead) * recipe.step_us
    for (device,), rows in learnt.sort("end_time").group_by("device"):
        if device in found.devices:
            mine = np.flatnonzero(found.device[test] == found.devices.index(cast("str", device)))
            fair[mine] = _apart(rows["end_time"].to_physical().to_numpy(), found.end_us[test[mine]], reach)
    left_out = int(np.count_nonzero(~fair))
    return fair, f"; {left_out:,} more that the champion had learnt from are left out" if left_out else ""


def _apart(learnt: NDArray[np.int64], asked: NDArray[np.int64], reach: int) -> NDArray[np.bool_]:
    """Which of the asked moments ([K]) lie at least so far from all that were learnt from ([L], ascending)."""
    far = np.iinfo(np.int64).max // 4
    around = np.concatenate([[-far], learnt, [far]])
    after = np.searchsorted(around, asked)
    apart: NDArray[np.bool_] = (around[after] - asked >= reach) & (asked - around[after - 1] >= reach)
    return apart


def _digest(recipe: Recipe, champion: ModelVersion | None) -> str:
    """Of the champion, and of what the recipe says of promotion."""
    rule = recipe.promotion.model_dump(mode="json")
    content = json.dumps([champion.version if champion else None, recipe.digest, rule], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _kept(settings: Settings, version: ModelVersion) -> Verdict:
    """The verdict that was reached before; figures that are no numbers are no JSON, which Python's own reads."""
    return msgspec.convert(json.loads(registry.artifact(settings, version, VERDICT)), type=Verdict)


def figures(verdict: Verdict) -> Iterable[str]:
    """Return the rows of a Markdown table: metric, version, champion."""
    theirs = verdict.champion_metrics or {}
    for name, value in verdict.metrics.items():
        yield f"| {name} | {value:.4g} | {f'{theirs[name]:.4g}' if name in theirs else '–'} |"
