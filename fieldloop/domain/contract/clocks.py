"""Changes of clock and cadence, seen in a device's event times against the ones before.

Each message is held against the device's own past and gets at most one label a question; a run of messages with the
same label is a change, a single one is not:

- unit of time: the event time fits the one before only when it is multiplied by a thousand or a million;
- zone: event times lag behind arrival by whole half hours more, or less, than they did, on a device that sends live;
- cadence: the records of a regular device follow each other by another time than before.
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.contract.history import Floats, Ints

LEARNT: Final = 30  # messages after which a device's clock is known
UNIT_RUN: Final = 3  # messages that show another unit of time before the device is suspended
ZONE_RUN: Final = 5
CADENCE_RUN: Final = 6
LIVE_US: Final = 10 * 60_000_000.0  # a lag that spreads no more belongs to a device that sends live
REGULAR: Final = 0.8  # share of messages at the known cadence that makes a device regular
SAME: Final = 0.15  # two cadences that differ less are the same
OTHER: Final = 0.4  # two cadences that differ less, as logarithms, are no change

_UNITS: Final = (1_000.0, 0.001, 1e6, 1e-6)
_UNIT_TEXT: Final = ("a thousandth of", "a thousand times", "a millionth of", "a million times")
_FITS: Final = 1.5  # epoch times of our decades differ by less than this factor
_HALF_HOUR_US: Final = 1_800e6
_ZONE_SLACK_US: Final = 180e6
_HALF_HOURS: Final = 28  # of the time zones furthest apart, 14 hours
_SPARSE: Final = 0.7  # share of a message's usual records
_LEARN: Final = 200.0  # messages of which the averages are the mean, about


@dataclass
class ClockHistory:
    """What is known of the clocks of devices, a row a device.

    Attributes:
        count: [G] messages learnt.
        event_us: [G] float64, the last event time that showed nothing; NaN where there is none.
        seen_us: [G] float64, the last event time of all.
        lag_us: [G] arrival less event time.
        lag_spread_us: [G] its mean distance from that.
        cadence_us: [G] time from record to record.
        regular: [G] share of messages that keep it.
        records: [G] records of a message.
        label: [G, 3] int64, what the last messages showed: unit, zone, cadence; 0 where nothing.
        run: [G, 3] int64, how many of them in a row.
        since: [G, 3] int64, stream sequence of the first of them.
    """

    count: Floats
    event_us: Floats
    seen_us: Floats
    lag_us: Floats
    lag_spread_us: Floats
    cadence_us: Floats
    regular: Floats
    records: Floats
    label: Ints
    run: Ints
    since: Ints

    @classmethod
    def empty(cls, devices: int) -> "ClockHistory":
        """Return devices of which nothing is known."""
        count, lag_us, spread_us, cadence_us, regular, records = (np.zeros(devices) for _ in range(6))
        label, run, since = (np.zeros((devices, 3), dtype=np.int64) for _ in range(3))
        never, unseen = np.full(devices, np.nan), np.full(devices, np.nan)
        return cls(count, never, unseen, lag_us, spread_us, cadence_us, regular, records, label, run, since)

    def extend(self, devices: int) -> None:
        """Make room for so many devices in all."""
        more = ClockHistory.empty(devices - len(self.count))
        for each in fields(self):
            setattr(self, each.name, np.concatenate([getattr(self, each.name), getattr(more, each.name)]))


@dataclass(frozen=True)
class Times:
    """The event times of a batch's messages, a row a message with any.

    Attributes:
        owner: [M] int64.
        sequence: [M] int64.
        arrival_us: [M] float64.
        last_us: [M] float64, event time of the last record.
        records: [M] int64, how many different times.
    """

    owner: Ints
    sequence: Ints
    arrival_us: Floats
    last_us: Floats
    records: Ints

    def take(self, rows: Ints) -> "Times":
        """Return the messages at these rows."""
        return Times(*(getattr(self, each.name)[rows] for each in fields(self)))


@dataclass(frozen=True)
class ClockVerdict:
    """What the event times say of a device: the message since which, what to suspect, and whether that is certain."""

    owner: int
    since: int
    change: str
    certain: bool


_QUESTIONS: Final = ("unit", "zone", "cadence")
_RUNS: Final = np.array([UNIT_RUN, ZONE_RUN, CADENCE_RUN])
_HELD: Final = np.array([1, 1, 3])  # run from which messages are held; single gaps are too common to hold for


class ClockWatch:
    """The clocks of all devices of a profile.

    Attributes:
        history: a row an owner.
    """

    def __init__(self) -> None:
        self.history = ClockHistory.empty(0)

    def judge(self, times: Times) -> list[ClockVerdict]:
        """Judge a batch's event times, then learn from the messages that show nothing."""
        times = times.take(np.argsort(times.owner, kind="stable"))
        if not len(times.owner):
            return []
        starts = np.flatnonzero(np.diff(times.owner, prepend=-1))
        labels = self._labels(times, starts)
        verdicts = [
            verdict for question, label in enumerate(labels) for verdict in self._runs(question, label, times, starts)
        ]
        self._learn(times, starts, np.asarray(~labels.any(axis=0)))
        ends = np.append(starts, len(times.owner))[1:] - 1
        self.history.seen_us[times.owner[ends]] = times.last_us[ends]
        return verdicts

    def held(self) -> list[tuple[int, int]]:
        """Return the devices in doubt, each with the stream sequence since which it is; one may come twice."""
        held = self.history.run >= _HELD
        return [(int(owner), int(self.history.since[owner, question])) for owner, question in np.argwhere(held)]

    def close(self, owner: int) -> None:
        """Forget what a device's last messages showed."""
        self.history.label[owner] = self.history.run[owner] = 0

    def repace(self, owner: int, cadence_us: float) -> None:
        """Learn a device's cadence anew where it kept another than this one: its profile was mended."""
        known = self.history.cadence_us[owner]
        if known > 0 and abs(np.log(known / cadence_us)) > OTHER:
            self.history.cadence_us[owner] = self.history.regular[owner] = 0.0

    def forget(self, owner: int) -> None:
        """Learn a device's clock anew."""
        empty = ClockHistory.empty(1)
        for each in fields(self.history):
            getattr(self.history, each.name)[owner] = getattr(empty, each.name)[0]

    def _labels(self, times: Times, starts: Ints) -> Ints:
        """Return what each message shows, question by question: [3, M] int64, 0 for nothing."""
        known, owner = self.history, times.owner
        learnt = known.count[owner] >= LEARNT
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(times.last_us / known.event_us[owner])
        unit = np.zeros(len(owner), dtype=np.int64)
        for number, factor in enumerate(_UNITS):
            unit[learnt & (np.abs(ratio + np.log(factor)) < np.log(_FITS))] = number + 1

        passed_us, waited_us = self._since_before(times, starts)
        late_us = times.arrival_us - times.last_us - known.lag_us[owner]
        half_hours = np.rint(late_us / _HALF_HOUR_US)
        live = learnt & (known.lag_spread_us[owner] <= LIVE_US) & (unit == 0)
        paced = waited_us >= 0.5 * np.minimum(passed_us, known.cadence_us[owner] * times.records)
        whole = np.abs(late_us - half_hours * _HALF_HOUR_US) <= _ZONE_SLACK_US
        shifted = live & paced & whole & (np.abs(half_hours) <= _HALF_HOURS)
        zone = np.where(shifted, half_hours, 0).astype(np.int64)

        cadence_us = passed_us / times.records
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.log(cadence_us / known.cadence_us[owner])
        regular = learnt & (known.regular[owner] >= REGULAR) & (cadence_us > 0) & (unit == 0)
        sparse = times.records < _SPARSE * known.records[owner]  # cells are missing, not records
        other = regular & (np.abs(change) > OTHER) & ((change < 0) | ~sparse)
        cadence = np.where(other, np.rint(np.where(other, change, 0.0) / SAME), 0).astype(np.int64)
        return np.stack([unit, zone, cadence])

    def _since_before(self, times: Times, starts: Ints) -> tuple[Floats, Floats]:
        """Return how much event time and arrival time passed since the device's message before; NaN for the first."""
        known = self.history.seen_us[times.owner[starts]]
        passed, waited = np.diff(times.last_us, prepend=np.nan), np.diff(times.arrival_us, prepend=np.nan)
        passed[starts] = times.last_us[starts] - known
        waited[starts] = np.where(np.isnan(known), np.nan, np.inf)
        return passed, waited

    def _runs(self, question: int, label: Ints, times: Times, starts: Ints) -> list[ClockVerdict]:
        """Count runs of the same label, remember the last one of each device, and return what they show."""
        known, owner = self.history, times.owner
        turn = np.diff(label, prepend=0) != 0
        turn[starts] = True
        begins = np.flatnonzero(turn)
        begin = begins[np.cumsum(turn) - 1]
        run = np.arange(len(label)) - begin + 1
        since = times.sequence[begin]
        opening = np.isin(begin, starts) & (known.label[owner, question] == label)  # goes on from the batch before
        run = np.where(opening, run + known.run[owner, question], run)
        since = np.where(opening, known.since[owner, question], since)
        run = np.where(label == 0, 0, run)
        ends = np.append(starts[1:], len(label)) - 1
        known.label[owner[ends], question] = label[ends]
        known.run[owner[ends], question] = run[ends]
        known.since[owner[ends], question] = since[ends]
        certain = np.flatnonzero(run >= _RUNS[question])
        _, first = np.unique(owner[certain], return_index=True)
        held = ends[(run[ends] >= _HELD[question]) & ~np.isin(owner[ends], owner[certain])]
        return [
            ClockVerdict(int(owner[at]), int(since[at]), self._text(question, int(label[at]), int(owner[at])), sure)
            for rows, sure in ((certain[first], True), (held, False))
            for at in rows
        ]

    def _text(self, question: int, label: int, owner: int) -> str:
        if _QUESTIONS[question] == "unit":
            return f"as if it now counted {_UNIT_TEXT[label - 1]} what it did"
        if _QUESTIONS[question] == "zone":
            return f"as if its clock were set {abs(label) / 2:g} h {'back' if label > 0 else 'ahead'}"
        was_s = self.history.cadence_us[owner] / 1e6
        return f"as if a record came every {was_s * np.exp(label * SAME):.3g} s, not every {was_s:.3g} s"

    def _learn(self, times: Times, starts: Ints, plain: NDArray[np.bool_]) -> None:
        """Add the messages that show nothing to what is known."""
        passed_us, _ = self._since_before(times, starts)
        kept = np.flatnonzero(plain)
        if not len(kept):
            return
        owner, known = times.owner[kept], self.history
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        number = np.diff(np.append(first, len(owner)))
        which = owner[first]
        weight = number / np.minimum(known.count[which] + number, _LEARN)
        weight = np.minimum(weight, 1.0)
        lag_us = (times.arrival_us - times.last_us)[kept]
        known.lag_us[which] += weight * (np.add.reduceat(lag_us, first) / number - known.lag_us[which])
        apart = np.abs(lag_us - np.repeat(known.lag_us[which], number))
        known.lag_spread_us[which] += weight * (np.add.reduceat(apart, first) / number - known.lag_spread_us[which])
        records = times.records[kept].astype(np.float64)
        known.records[which] += weight * (np.add.reduceat(records, first) / number - known.records[which])
        self._learn_cadence(owner, passed_us[kept] / times.records[kept])
        known.count[which] += number
        known.event_us[which] = times.last_us[kept][np.append(first[1:], len(owner)) - 1]

    def _learn_cadence(self, owner: Ints, cadence_us: Floats) -> None:
        """Add times from record to record: the batch's median, and how many keep to what is known."""
        forward = cadence_us > 0
        owner, cadence_us = owner[forward], cadence_us[forward]
        if not len(owner):
            return
        order = np.lexsort((cadence_us, owner))
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        number = np.diff(np.append(first, len(owner)))
        which, known = owner[first], self.history
        weight = np.minimum(number / np.minimum(known.count[which] + number, _LEARN), 1.0)
        median = cadence_us[order][first + number // 2]
        before = np.where(known.cadence_us[which] > 0, known.cadence_us[which], median)
        known.cadence_us[which] = np.exp((1 - weight) * np.log(before) + weight * np.log(median))
        same = np.abs(np.log(cadence_us / np.repeat(known.cadence_us[which], number))) <= SAME
        known.regular[which] += weight * (
            np.add.reduceat(same.astype(np.float64), first) / number - known.regular[which]
        )
