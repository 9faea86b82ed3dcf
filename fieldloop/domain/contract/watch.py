"""The contract watch over the devices of one profile: batch after batch, before anything is committed.

It learns what each device sends, and finds the devices whose messages show that unit, scale, cadence or clock are not
what they were. Messages that were judged before are passed over, so a batch that comes again teaches nothing twice and
a replay out of quarantine is not held up by what has been settled.
"""

from collections.abc import Sequence

import numpy as np

from fieldloop.domain.contract.clocks import ClockWatch, Times
from fieldloop.domain.contract.history import Ints, run_starts
from fieldloop.domain.contract.levels import LevelWatch
from fieldloop.domain.contract.points import Series
from fieldloop.domain.contract.promise import Finding, Promise
from fieldloop.domain.readings import Messages, Named, Readings, Reason, Reject

MIN_CAPACITY = 16

_TIMES = (Reason.FUTURE, Reason.NO_EVENT_TIME)  # refusals that tell what the device's clock said


class Watch:
    """What is known of the devices of one profile.

    Attributes:
        devices: their names; a device's place is its row everywhere else.
        judged: [G] int64, stream sequence up to which each was judged.
        turn: [G] int64, how often each had been set aside or readmitted when it was last looked at.
        levels: one a channel.
        clocks: their clocks.
    """

    def __init__(self, promises: Sequence[Promise], cadence_us: int) -> None:
        self.devices: dict[str, int] = {}
        self.judged: Ints = np.zeros(0, dtype=np.int64)
        self.turn: Ints = np.zeros(0, dtype=np.int64)
        self.levels = [LevelWatch(promise, cadence_us) for promise in promises]
        self.clocks = ClockWatch()
        self._cadence_us = cadence_us

    def judge(self, messages: Messages, readings: Readings, rejects: Sequence[Reject]) -> list[Finding]:
        """Return the devices that do not keep their promise, by a batch of their messages as they were harmonized.

        Args:
            messages: [M] messages in order of arrival.
            readings: what was accepted of them.
            rejects: what was refused; values out of range and impossible times tell of changes too.
        """
        owner = self._owners(messages)
        fresh = np.where(messages.sequence > self.judged[owner], owner, -1)
        findings = self._by_levels(messages, fresh, readings, rejects)
        findings += self._by_clocks(messages, fresh, readings, rejects)
        np.maximum.at(self.judged, owner, messages.sequence)
        for finding in findings:
            if finding.certain:  # once mended, what it sent since is judged anew
                self.judged[self.devices[finding.device]] = finding.since - 1
        return findings

    def held(self) -> dict[str, int]:
        """Return the devices in doubt, each with the sequence since which its messages are held."""
        names = list(self.devices)
        since: dict[str, int] = {}
        for levels in self.levels:
            for owner, onset in levels.open.items():
                since[names[owner]] = min(onset.since, since.get(names[owner], onset.since))
        for owner, sequence in self.clocks.held():
            since[names[owner]] = min(sequence, since.get(names[owner], sequence))
        return since

    def settle(self, device: str, turn: int, *, anew: bool) -> None:
        """Take note that a device was readmitted: nothing of it is in doubt, and it is learnt anew where asked for."""
        owner = self.add(device)
        if self.turn[owner] == turn:
            return
        self.turn[owner] = turn
        for levels in self.levels:
            levels.open.pop(owner, None)
        self.clocks.close(owner)
        self.clocks.repace(owner, self._cadence_us)
        if anew:
            self._forget(owner)

    def _forget(self, owner: int) -> None:
        for levels in self.levels:
            levels.forget(owner)
        self.clocks.forget(owner)

    def _by_levels(
        self, messages: Messages, owner: Ints, readings: Readings, rejects: Sequence[Reject]
    ) -> list[Finding]:
        names = list(self.devices)
        found = []
        for metric, levels in enumerate(self.levels):
            series = _series(metric, levels.promise.metric, owner, readings, rejects)
            for verdict in levels.judge(series, messages.sequence) if len(series.value) else ():
                change = levels.promise.changes[verdict.change].name
                found.append(
                    Finding(names[verdict.owner], verdict.since, levels.promise.metric, change, verdict.certain)
                )
        return found

    def _by_clocks(
        self, messages: Messages, owner: Ints, readings: Readings, rejects: Sequence[Reject]
    ) -> list[Finding]:
        names = list(self.devices)
        return [
            Finding(names[verdict.owner], verdict.since, None, verdict.change, verdict.certain)
            for verdict in self.clocks.judge(_times(messages, owner, readings, rejects))
        ]

    def _owners(self, messages: Messages) -> Ints:
        """Return each message's device as its row ([M] int64); new devices get one."""
        named = Named.of(messages.devices)
        for name in named.names:
            self.add(name)
        return np.array([self.devices[name] for name in named.names], dtype=np.int64)[named.codes]

    def add(self, device: str) -> int:
        """Return a device's row, a new one where it has none."""
        row = self.devices.setdefault(device, len(self.devices))
        if row >= len(self.judged):
            capacity = max(MIN_CAPACITY, 2 * len(self.judged))
            more = np.zeros(capacity - len(self.judged), dtype=np.int64)
            self.judged, self.turn = np.concatenate([self.judged, more]), np.concatenate([self.turn, more])
            for levels in self.levels:
                levels.extend(capacity)
            self.clocks.history.extend(capacity)
        return row


def _series(metric: int, name: str, owner: Ints, readings: Readings, rejects: Sequence[Reject]) -> Series:
    """Return one channel's readings of messages that are to be judged, with the values that no device can send."""
    chosen = readings.metric == metric
    if (owner < 0).any():
        chosen &= owner[readings.message] >= 0
    message, value, event_us = readings.message, readings.value, readings.event_us
    if not chosen.all():
        message, value, event_us = message[chosen], value[chosen], event_us[chosen]
    outside = [r for r in rejects if r.reason == Reason.OUT_OF_RANGE and r.metric == name and r.value is not None]
    if outside:
        rows = np.array([reject.message for reject in outside], dtype=np.int64)
        numbers = np.array([reject.value for reject in outside], dtype=np.float64)
        times = np.array([reject.event_us for reject in outside], dtype=np.int64)
        fresh = owner[rows] >= 0
        message = np.append(message, rows[fresh])
        value, event_us = np.append(value, numbers[fresh]), np.append(event_us, times[fresh])
        order = np.argsort(message, kind="stable")
        message, value, event_us = message[order], value[order], event_us[order]
    return Series(owner, message, value, event_us)


def _times(messages: Messages, owner: Ints, readings: Readings, rejects: Sequence[Reject]) -> Times:
    """Return the event times of messages that are to be judged; of a message without any, what its clock said."""
    starts = run_starts(readings.message)
    rows = readings.message[starts]
    ends = np.append(starts, len(readings))[1:] - 1
    again = np.zeros(len(readings), dtype=np.bool_)  # of the same record as the one before it
    np.equal(readings.event_us[1:], readings.event_us[:-1], out=again[1:])
    again[starts] = False
    repeated = np.bincount(readings.message[again], minlength=len(owner))
    records = ends - starts + 1 - repeated[rows]
    said = {r.message: float(r.event_us) for r in rejects if r.reason in _TIMES and r.event_us is not None}
    alone = np.array(sorted(said.keys() - set(rows.tolist())) if said else [], dtype=np.int64)
    spoken = np.array([said[row] for row in alone.tolist()], dtype=np.float64)
    rows = np.append(rows, alone)
    order = np.argsort(rows, kind="stable")
    order = order[owner[rows[order]] >= 0]
    last = np.append(readings.event_us[ends].astype(np.float64), spoken)
    records = np.append(records, np.ones(len(alone), dtype=np.int64))
    rows = rows[order]
    return Times(
        owner[rows],
        messages.sequence[rows],
        messages.arrival_us[rows].astype(np.float64),
        last[order],
        records[order],
    )
