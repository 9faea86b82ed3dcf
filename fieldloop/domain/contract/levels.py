"""Changes of unit and scale, seen in one metric's values against what each device itself has sent so far.

A change is put to four questions, all answered by the device's own history:

- onset: how much better does the first changed value follow on the one before it, once the change is undone?
- steps: are the steps after it rare in size, and usual once the change is undone?
- levels: are the values after it rare, and usual once the change is undone?
- grain: do the decimals of the values after it look like what the change makes of the device's own (`grains`)?

Weather comes in spells, so the readings after an onset are no independent witnesses: steps and levels count by their
mean over a span, not by their sum. Decimals know no weather, so the grain counts by its sum, within bounds. A device
is suspended when all four together exceed what two years of turbines ever showed by nature (`RULES`), or when the grain
alone is beyond chance and the values do not speak against the change. Between a striking onset and the verdict its
messages are held.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.contract.grains import Grains, GrainWatch
from fieldloop.domain.contract.history import Floats, History, Ints, Usual
from fieldloop.domain.contract.onset import GRAIN, Open, Verdict
from fieldloop.domain.contract.points import ENOUGH, Points, Series, choose
from fieldloop.domain.contract.promise import Change, Promise
from fieldloop.domain.contract.ratios import RatioWatch

LEARNT: Final = 1_000  # readings after which a history is good enough to judge by
NEAR_CADENCES: Final = 2.5  # two readings further apart are no neighbours
DOUBT_ONSET: Final = 6.0  # an onset as striking as this, and
DOUBT: Final = 14.0  # this much in all: messages are held until there is more to go by

_CLIP: Final = 6.0  # of one reading's witness for steps or levels
_SHARP: Final = 8.0  # an onset beyond it counts as sharp
_WEIGHT: Final = 3.0  # of the two means while in doubt
_GRAIN_ALONE: Final = 18.0  # one chance in sixty million: a change whose values do not speak against it is certain
_GRAIN_SOME: Final = 3.5  # with so much of it,
_GRAIN_DOUBT: Final = 8.0  # and this much together with the onset, messages are held


@dataclass(frozen=True)
class Rule:
    """When a change is certain after so many readings.

    Attributes:
        readings: how many, the first changed one included.
        weight: of the means of steps and levels; that of the onset is 1.
        sharp: what all four must come to after a sharp onset.
        blunt: the same after any other.
    """

    readings: int
    weight: float
    sharp: float
    blunt: float


# about 2 above the most that the wind farm and made-up honest fleets showed by nature
RULES: Final = (Rule(12, 3.0, 31.0, 36.0), Rule(48, 5.0, 34.0, 45.0), Rule(144, 5.0, 27.0, 34.0))
LONGEST: Final = RULES[-1].readings


class LevelWatch:
    """The levels of one channel of all devices of a profile.

    Attributes:
        promise: what the channel is held to.
        history: a row an owner.
        open: onsets that are not settled yet, by owner.
    """

    def __init__(self, promise: Promise, cadence_us: int) -> None:
        self.promise = promise
        self.history = History.empty(0)
        self.open: dict[int, Open] = {}
        self.ratios = RatioWatch(promise, NEAR_CADENCES * cadence_us)
        self.grains = GrainWatch(promise)
        self._near_us = NEAR_CADENCES * cadence_us

    def judge(self, series: Series, sequence: Ints) -> list[Verdict]:
        """Judge a batch, then learn from what is beyond doubt.

        Args:
            series: the channel's readings, those outside the physical range too.
            sequence: [M] int64, stream sequence of each message of the batch.
        """
        known = self.history
        enough = np.where(known.count >= LEARNT, ENOUGH, 2 * LEARNT)
        points, owners, last, last_us = choose(series, known.last, known.last_us, enough)
        if not len(points):
            return []
        found = self._judge(points, owners, sequence)
        crowded = np.bincount(points.owner) >= ENOUGH
        if again := np.array([owner for owner in found if crowded[owner]], dtype=np.int64).tolist():
            theirs = series.of(np.array(again))
            every, *_ = choose(theirs, known.last, known.last_us, np.full(len(enough), len(series.value)))
            found = {owner: verdict for owner, verdict in found.items() if owner not in again}
            found |= self._judge(every, np.array(again), sequence)
        since = {owner: verdict.since for owner, verdict in found.items() if verdict.certain}
        for jumped in self.ratios.judge(series, sequence, since):
            if jumped.owner not in since:
                found[jumped.owner] = Verdict(
                    jumped.owner, jumped.since, jumped.change, True, jumped.strength, jumped.before
                )
                self.open.pop(jumped.owner, None)
        self._learn(points, owners, sequence, found)
        known.last[owners], known.last_us[owners] = last, last_us
        for verdict in found.values():
            if verdict.certain:  # what came since is judged anew once it is mended, as it follows on this
                known.last[verdict.owner], known.last_us[verdict.owner] = verdict.before
        return list(found.values())

    def forget(self, owner: int) -> None:
        """Learn a device anew."""
        self.open.pop(owner, None)
        self.history.put(np.array([owner]), History.empty(1))
        self.ratios.history.forget(owner)
        self.grains.history.forget(owner)

    def extend(self, devices: int) -> None:
        """Make room for so many devices in all."""
        self.history.extend(devices)
        self.ratios.history.extend(devices)
        self.grains.history.extend(devices)

    def _judge(self, points: Points, owners: Ints, sequence: Ints) -> dict[int, Verdict]:
        """Return the strongest verdict of each owner; opens remembers what is not settled."""
        history = self.history.take(owners)
        row = np.searchsorted(owners, points.owner)
        witnesses = _Witnesses(points, row, history, self.promise, self._near_us)
        grains = self._grains(points)
        carried = {owner: self.open.pop(owner) for owner in owners.tolist() if owner in self.open}
        found: dict[int, Verdict] = {}
        for number, change in enumerate(self.promise.changes):
            said = (*witnesses.of(change), grains.of(number, change))
            spans = _Spans(points, sequence, *said, history.count[row] >= LEARNT)
            verdicts = [*spans.certain(number), *spans.doubtful(number)]
            verdicts += [
                verdict
                for owner, onset in carried.items()
                if onset.change == number and (verdict := spans.carry(owner, onset)) is not None
            ]
            for verdict in verdicts:
                known = found.get(verdict.owner)
                if known is None or (verdict.certain, verdict.strength) > (known.certain, known.strength):
                    found[verdict.owner] = verdict
                    self.open.pop(verdict.owner, None)
                    if not verdict.certain:
                        self.open[verdict.owner] = spans.opened[verdict]
        return found

    def _learn(self, points: Points, owners: Ints, sequence: Ints, found: Mapping[int, Verdict]) -> None:
        """Add the points before anything suspect to the owners' histories."""
        history = self.history.take(owners)
        row = np.searchsorted(owners, points.owner)
        until = np.full(len(owners), np.iinfo(np.int64).max)
        for owner, verdict in found.items():
            until[np.searchsorted(owners, owner)] = verdict.since
        inside = (points.value >= self.promise.minimum) & (points.value <= self.promise.maximum)
        kept = inside & (sequence[points.message] < until[row])
        known = ~np.isnan(points.before)
        step = turned(np.where(known, points.value - points.before, 0.0), self.promise.turn)
        near = known & (np.abs(points.event_us - points.before_us) <= self._near_us)
        history.learn(row[kept], points.value[kept], step[kept], near[kept])
        self._grains(points).learn(kept)
        self.history.put(owners, history)

    def _grains(self, points: Points) -> Grains:
        return self.grains.look(points.owner, points.value, points.value != points.before)


def turned(step: Floats, turn: float | None) -> Floats:
    """Return steps of an angle the short way round; a step of more than a turn is none of an angle."""
    if turn is None:
        return step
    return np.asarray(np.where(np.abs(step) <= turn, (step + turn / 2) % turn - turn / 2, step))


class _Witnesses:
    """What each point says of a change."""

    def __init__(self, points: Points, row: Ints, history: History, promise: Promise, near_us: float) -> None:
        self._points, self._row, self._promise, self._near_us = points, row, promise, near_us
        self._usual = Usual(history)
        self._before = np.where(np.isnan(points.before), points.value, points.before)
        self._nearness = self._near(points.before_us)
        self._far_before = np.where(np.isnan(points.chosen_before), points.value, points.chosen_before)
        self._far_nearness = self._near(points.chosen_before_us)
        self._step = turned(points.value - self._before, promise.turn)
        self._follows = self._density(points.value, self._before, self._nearness)
        self._far_follows = self._density(points.value, self._far_before, self._far_nearness)
        self._step_tail = self._usual.step_tail(row, self._step)
        impossible = (points.value < promise.minimum) | (points.value > promise.maximum)
        self._level_tail = np.where(impossible, -_CLIP, self._usual.level_tail(row, points.value))

    def of(self, change: Change) -> tuple[Floats, Floats, Floats]:
        """Return how much better the point follows, its step and its level are, once the change is undone."""
        meant = (self._points.value - change.offset) / change.scale
        dense = np.log(change.scale)
        onset = self._density(meant, self._before, self._nearness) - dense - self._follows
        if not np.array_equal(self._before, self._far_before):
            further = self._density(meant, self._far_before, self._far_nearness) - dense - self._far_follows
            onset = np.maximum(onset, further)
        telling = (self._step != 0) & (self._nearness == 1)
        steps = np.where(telling, self._usual.step_tail(self._row, self._step / change.scale) - self._step_tail, 0.0)
        levels = np.where(meant == self._points.value, 0.0, self._usual.level_tail(self._row, meant) - self._level_tail)
        return onset, np.clip(steps, -_CLIP, _CLIP), np.clip(levels, -_CLIP, _CLIP)

    def _near(self, before_us: Ints) -> Floats:
        return np.asarray(np.minimum(self._near_us / np.maximum(np.abs(self._points.event_us - before_us), 1.0), 1.0))

    def _density(self, value: Floats, before: Floats, nearness: Floats) -> Floats:
        step = turned(value - before, self._promise.turn)
        return self._usual.step_density(self._row, step, value, nearness)


class _Spans:
    """Onset, steps, levels and grain of one change, summed over the spans that begin at each point."""

    def __init__(
        self,
        points: Points,
        sequence: Ints,
        onset: Floats,
        steps: Floats,
        levels: Floats,
        grain: Floats,
        learnt: NDArray[np.bool_],
    ) -> None:
        self._points, self._onset, self._learnt = points, onset, learnt
        self._sequence = sequence[points.message]
        self._steps = np.concatenate([[0.0], np.cumsum(steps)])
        self._levels = np.concatenate([[0.0], np.cumsum(levels)])
        self._grain = np.concatenate([[0.0], np.cumsum(grain)])
        self._starts = points.starts()
        self._stops = np.append(self._starts[1:], len(points))
        self._stop = np.repeat(self._stops, self._stops - self._starts)
        self.opened: dict[Verdict, Open] = {}

    def certain(self, change: int) -> list[Verdict]:
        """Return the owners whose readings show the change, by the rules."""
        excess = np.full(len(self._points), -np.inf)
        begin = np.arange(len(self._points))
        for rule in RULES:
            whole = self._learnt & (begin + rule.readings <= self._stop)
            excess = np.where(
                whole, np.maximum(excess, self._total(rule.readings, rule.weight) - self._limit(rule)), excess
            )
        grain, values = self._grain_until(LONGEST), self._values_until(LONGEST, _WEIGHT)
        told = self._learnt & (grain >= _GRAIN_ALONE) & (self._onset > 0) & (values >= 0)
        excess = np.where(told, np.maximum(excess, grain - _GRAIN_ALONE), excess)
        strongest = {int(self._points.owner[at]): float(excess[at]) for at in self._best(excess)}
        shown = np.flatnonzero(excess >= 0)
        owners, first = np.unique(self._points.owner[shown], return_index=True)  # since the first that shows it
        return [
            Verdict(int(owner), int(self._sequence[at]), change, True, strongest[int(owner)], self._before(at))
            for owner, at in zip(owners, shown[first], strict=True)
        ]

    def doubtful(self, change: int) -> list[Verdict]:
        """Return the owners with a striking onset for which there are too few readings yet."""
        open_still = self._learnt & (np.arange(len(self._points)) + LONGEST > self._stop)
        grain, total = self._grain_until(LONGEST), self._total(LONGEST, _WEIGHT)
        striking = (self._onset >= DOUBT_ONSET) & (total >= DOUBT)
        striking |= (
            (grain >= _GRAIN_SOME) & (self._onset > 0) & (np.minimum(self._onset, DOUBT_ONSET) + grain >= _GRAIN_DOUBT)
        )
        total = np.where(open_still & striking, total, -np.inf)
        verdicts = []
        for at in self._best(total):
            owner, since, before = int(self._points.owner[at]), int(self._sequence[at]), self._before(at)
            verdict = Verdict(owner, since, change, False, float(total[at]), before)
            self.opened[verdict] = self._sums(Open(change, float(self._onset[at]), since, before), at, self._stop[at])
            verdicts.append(verdict)
        return verdicts

    def carry(self, owner: int, onset: Open) -> Verdict | None:
        """Go on with an onset of an earlier batch."""
        group = int(np.searchsorted(self._points.owner[self._starts], owner))
        at, stop = int(self._starts[group]), int(self._stops[group])
        for rule in RULES:
            until = at + rule.readings - onset.readings
            if at < until <= stop:
                sums = self._sums(onset, at, until)
                excess = sums.total(rule.weight) - (rule.sharp if onset.onset >= _SHARP else rule.blunt)
                if excess >= 0:
                    return Verdict(owner, onset.since, onset.change, True, excess, onset.before)
        sums = self._sums(onset, at, stop)
        total = sums.total(_WEIGHT)
        if sums.grain >= _GRAIN_ALONE and sums.values(_WEIGHT) >= 0:
            return Verdict(owner, onset.since, onset.change, True, sums.grain - _GRAIN_ALONE, onset.before)
        if sums.readings >= LONGEST or (total < DOUBT and sums.grain < _GRAIN_SOME):
            return None
        verdict = Verdict(owner, onset.since, onset.change, False, total, onset.before)
        self.opened[verdict] = sums
        return verdict

    def _total(self, readings: int, weight: float) -> Floats:
        """Return what the spans of so many readings, or as many as there are, come to."""
        return np.asarray(self._values_until(readings, weight) + np.clip(self._grain_until(readings), *GRAIN))

    def _values_until(self, readings: int, weight: float) -> Floats:
        begin = np.arange(len(self._points))
        end = np.minimum(begin + readings, self._stop)
        steps = (self._steps[end] - self._steps[begin + 1]) / np.maximum(end - begin - 1, 1)
        levels = (self._levels[end] - self._levels[begin]) / (end - begin)
        return np.asarray(self._onset + weight * (steps + levels))

    def _grain_until(self, readings: int) -> Floats:
        begin = np.arange(len(self._points))
        end = np.minimum(begin + readings, self._stop)
        return np.asarray(self._grain[end] - self._grain[begin])

    def _limit(self, rule: Rule) -> Floats:
        return np.asarray(np.where(self._onset >= _SHARP, rule.sharp, rule.blunt))

    def _before(self, at: int) -> tuple[float, int]:
        """Return the reading before a point, and its event time."""
        return float(self._points.before[at]), int(self._points.before_us[at])

    def _best(self, strength: Floats) -> list[int]:
        """Return the strongest point of each owner, the first one of equals."""
        highest = np.repeat(np.maximum.reduceat(strength, self._starts), self._stops - self._starts)
        at = np.flatnonzero((strength == highest) & (strength > -np.inf))
        _, first = np.unique(self._points.owner[at], return_index=True)
        return [int(place) for place in at[first]]

    def _sums(self, onset: Open, begin: int, end: int) -> Open:
        """Return an onset with the readings from `begin` to `end` added."""
        own = begin + (onset.readings == 0)  # the step at the onset itself is the onset's witness
        return Open(
            onset.change,
            onset.onset,
            onset.since,
            onset.before,
            onset.readings + int(end) - begin,
            onset.steps + float(self._steps[end] - self._steps[own]),
            onset.levels + float(self._levels[end] - self._levels[begin]),
            onset.grain + float(self._grain[end] - self._grain[begin]),
        )
