"""Champion against challenger: two models' predictions of the same held-out windows, and what a rule makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.bootstrap import LEAST_BLOCKS, LEVEL, Blocks, Interval, gained
from fieldloop.domain.metrics import gain, judge, judge_each
from fieldloop.domain.recipe import Metric, Promotion, Recipe

_NAMED: Final = 3  # devices that a reason spells out


@dataclass(frozen=True)
class Rivals:
    """Two models' predictions of the same held-out windows.

    Attributes:
        devices: [D] names of all that the windows' tables hold.
        device: [N] int32, into `devices`.
        truth: [N] float32, N > 0.
        challenger: [N, P] float32.
        champion: [N, P] float32.
    """

    devices: Sequence[str]
    device: NDArray[np.int32]
    truth: NDArray[np.float32]
    challenger: NDArray[np.float32]
    champion: NDArray[np.float32]

    def lead(self, recipe: Recipe, of: Blocks) -> Interval:
        """Return the interval of how much better the challenger is by the metric that decides."""
        return gained(recipe, recipe.promotion.metric, self.truth, self.challenger, self.champion, of)

    def on(self, code: int) -> "Rivals":
        """Return the predictions for one device."""
        mine = self.device == code
        return Rivals(self.devices, self.device[mine], self.truth[mine], self.challenger[mine], self.champion[mine])


@dataclass(frozen=True)
class OnDevice:
    """A device's figures by both models."""

    device: str
    challenger: float
    champion: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same windows.

    Attributes:
        metric: that decides.
        windows: how many.
        blocks: how many were drawn by.
        block: what one of them is.
        challenger: its figures.
        champion: its figures.
        lead: how much better the challenger is by the metric.
        interval: of that.
        worse: devices on which it is surely worse, and by more than the rule allows; the worst first.
        unsaid: devices on which the metric says nothing, for want of held-out windows or of a second class in them.
    """

    metric: Metric
    windows: int
    blocks: int
    block: str
    challenger: dict[Metric, float]
    champion: dict[Metric, float]
    lead: float
    interval: Interval
    worse: tuple[OnDevice, ...]
    unsaid: tuple[str, ...]


def compare(recipe: Recipe, rivals: Rivals, of: Blocks) -> Comparison:
    """Compare two models' predictions by the recipe's metric and rule, drawn in the windows' blocks."""
    rule = recipe.promotion
    ours, theirs = (judge(recipe, rivals.truth, predicted) for predicted in (rivals.challenger, rivals.champion))
    pairs = _on_devices(recipe, rivals)
    worse = [
        pair
        for code, pair in pairs.items()
        if _much_worse(rule, pair) and rivals.on(code).lead(recipe, of.of(rivals.device == code)).high < 0
    ]
    worse.sort(key=lambda pair: gain(rule.metric, pair.challenger, pair.champion) / (abs(pair.champion) or 1))
    return Comparison(
        rule.metric,
        len(rivals.truth),
        of.number,
        of.unit,
        ours,
        theirs,
        gain(rule.metric, ours[rule.metric], theirs[rule.metric]),
        rivals.lead(recipe, of),
        tuple(worse),
        _unsaid(recipe, rivals, pairs),
    )


def decide(rule: Promotion, found: Comparison) -> tuple[bool, str]:
    """Say whether the challenger wins, and why, in words."""
    metric = found.metric
    figures = (
        f"{metric} {found.challenger[metric]:.4g} against {found.champion[metric]:.4g} on the same {found.windows:,} "
        "windows"
    )
    if np.isnan(found.lead):
        return False, f"{figures}: the held-out windows do not say, for instance because only one class is in them"
    if np.isnan(found.interval.low):
        few = f"{found.blocks} blocks ({found.block}) are fewer than the {LEAST_BLOCKS} that show how figures vary"
        return False, f"{figures}: {few}; hold out more"
    least = rule.margin * abs(found.champion[metric])
    lead = f"a lead of {found.lead:.3g}, {LEVEL:.0%} interval {found.interval.low:.3g} to {found.interval.high:.3g}"
    if not found.interval.low > least:
        wanted = f"{least:.3g}, the recipe's margin of {rule.margin:.1%}" if least else "chance"
        return False, f"{figures}: not better by more than {wanted} ({lead})"
    if found.worse:
        limit = f"by more than the {rule.device_limit:.0%} that the recipe allows"
        return False, f"{figures}: better in all ({lead}), but worse {limit} on {_named(found.worse)}"
    silent = f"; no held-out window says anything of {_listed(found.unsaid)}" if found.unsaid else ""
    return True, f"{figures}: better by more than {'the margin and ' if least else ''}chance ({lead}){silent}"


def _on_devices(recipe: Recipe, rivals: Rivals) -> dict[int, OnDevice]:
    """Each device's figures, by its code; none where the rule looks at none."""
    if recipe.promotion.device_limit is None:
        return {}
    metric = recipe.promotion.metric
    both = (rivals.challenger, rivals.champion)
    ours, theirs = (judge_each(recipe, rivals.truth, predicted, rivals.device) for predicted in both)
    return {code: OnDevice(rivals.devices[code], ours[code][metric], theirs[code][metric]) for code in ours}


def _unsaid(recipe: Recipe, rivals: Rivals, pairs: Mapping[int, OnDevice]) -> tuple[str, ...]:
    """Devices that the rule looks at and that nothing is said of; those that a split by device learnt from are none."""
    if recipe.promotion.device_limit is None:
        return ()
    codes = pairs if recipe.split.by == "device" else range(len(rivals.devices))
    figures = {code: pair.challenger + pair.champion for code, pair in pairs.items()}
    return tuple(rivals.devices[code] for code in codes if np.isnan(figures.get(code, float("nan"))))


def _much_worse(rule: Promotion, pair: OnDevice) -> bool:
    limit = 0.0 if rule.device_limit is None else rule.device_limit
    return gain(rule.metric, pair.challenger, pair.champion) < -limit * abs(pair.champion)


def _named(worse: Sequence[OnDevice]) -> str:
    return _listed([f"{pair.device} ({pair.challenger:.4g} against {pair.champion:.4g})" for pair in worse])


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
