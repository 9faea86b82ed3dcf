"""The contract watch's rules: what is a change, and what is weather, a late backlog, or a gap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.contract.clocks import ClockVerdict, ClockWatch, Times
from fieldloop.domain.contract.keeping import absorb, keep
from fieldloop.domain.contract.points import Points, Series, choose
from fieldloop.domain.contract.promise import Change, Finding, Promise
from fieldloop.domain.contract.watch import Watch
from fieldloop.domain.readings import Messages, Readings

HOUR_US = 3_600_000_000
STEP_US = HOUR_US // 6
BEGIN_US = 1_770_000_000_000_000
PROMISE = Promise("temperature", -60, 300, (Change("degF", 1.8, 32.0), Change("kelvin", 1.0, 273.15)))


def times(event_us: np.ndarray, lag_us: np.ndarray | float = 2e6, begin: int = 1) -> Times:
    """Messages of one device, six records each."""
    event_us = event_us.astype(np.float64)
    number = len(event_us)
    return Times(np.zeros(number, np.int64), np.arange(begin, begin + number), event_us + lag_us, event_us,
                 np.full(number, 6))  # fmt: skip


def known_clock() -> tuple[ClockWatch, float]:
    """A clock of which 100 hourly messages came live, and when the last did."""
    watch = ClockWatch()
    watch.history.extend(1)
    event_us = BEGIN_US + np.arange(100) * float(HOUR_US)
    assert watch.judge(times(event_us)) == []
    return watch, float(event_us[-1])


CLOCKS = {
    "milliseconds": (lambda hours, last: (last + hours) / 1000, 3),
    "five hours back": (lambda hours, last: last + hours - 5 * HOUR_US, 5),
    "a record a minute": (lambda hours, last: last + hours / 10, 6),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_clock_changes_are_dated_by_their_first_message(case: str) -> None:
    """In one batch or message by message, the first changed message is the one named."""
    change, needed = CLOCKS[case]
    for size in (needed, 1):
        watch, last_us = known_clock()
        event_us = change(np.arange(1, needed + 1) * float(HOUR_US), last_us)
        arrival_us = last_us + np.arange(1, needed + 1) * float(HOUR_US) if "minute" not in case else event_us
        verdicts: list[ClockVerdict] = []
        for first in range(0, needed, size):
            part = slice(first, first + size)
            verdicts = watch.judge(times(event_us[part], arrival_us[part] + 2e6 - event_us[part], 101 + first))
        assert [(verdict.certain, verdict.since) for verdict in verdicts] == [(True, 101)]


def test_an_outage_whose_backlog_comes_at_once_is_no_change() -> None:
    """Messages of half a day arrive together, each with another lag: the clock is as it was."""
    watch, last_us = known_clock()
    event_us = last_us + np.arange(1, 13) * float(HOUR_US)
    assert watch.judge(times(event_us, event_us[-1] + 2e6 - event_us, 101)) == []
    later = event_us[-1] + np.arange(1, 13) * float(HOUR_US)
    assert watch.judge(times(later, 2e6, 113)) == []


def celsius(count: int) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 0.2, count)
    return np.round(12 + 6 * np.sin(np.arange(count) * 2 * np.pi / 144) + noise, 1)


def judge(watch: Watch, first: int, values: np.ndarray) -> list[Finding]:
    """One message a reading."""
    count = len(values)
    event_us = BEGIN_US + np.arange(first, first + count) * STEP_US
    messages = Messages(["d1"] * count, event_us + 2_000_000, np.arange(first + 1, first + count + 1), [b""] * count)
    readings = Readings(np.arange(count), np.zeros(count, np.int16), event_us, values)
    return watch.judge(messages, readings, [])


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_fahrenheit_is_found_however_messages_are_batched_and_across_restarts(batch: int) -> None:
    """In doubt from the first changed message on, then certain of it; what was learnt survives as bytes."""
    watch = Watch([PROMISE], STEP_US)
    assert judge(watch, 0, celsius(1300)) == []
    changed = celsius(1500)[1300:] * 1.8 + 32
    for first in range(0, len(changed), batch):
        again = Watch([PROMISE], STEP_US)
        absorb(again, keep(watch, list(watch.devices)))
        watch = again
        found = judge(watch, 1300 + first, changed[first : first + batch])
        assert [(finding.metric, finding.change, finding.since) for finding in found] == [("temperature", "degF", 1301)]
        if found[0].certain:
            anew = judge(watch, 1300, changed)  # as out of quarantine, after an edit that mends nothing
            assert [(finding.change, finding.since, finding.certain) for finding in anew] == [("degF", 1301, True)]
            return
        assert watch.held() == {"d1": 1301}
    pytest.fail("never certain")


def test_a_cold_front_is_weather() -> None:
    """Twelve degrees less within two hours, and for good, is no unit."""
    watch = Watch([PROMISE], STEP_US)
    judge(watch, 0, celsius(1300))
    front = celsius(1900)[1300:] - np.minimum(np.arange(600), 12)
    assert [finding for finding in judge(watch, 1300, front) if finding.certain] == []
    assert watch.held() == {}


def gusts(devices: int, readings: int) -> np.ndarray:
    """Wind as many devices have it: its swings are a share of its level."""
    random = np.random.default_rng(3)
    calm = np.exp(np.cumsum(random.normal(0, 0.02, (devices, readings)), axis=1))
    return np.round(np.maximum(6 * calm * (1 + random.normal(0, 0.1, calm.shape)), 0), 2)


def blow(watch: Watch, first: int, values: np.ndarray) -> list[Finding]:
    """All devices' readings, six a message."""
    devices, readings = values.shape
    hours = readings // 6
    who = np.tile(np.arange(devices), hours)
    number = np.repeat(np.arange(first // 6, first // 6 + hours), devices)
    sequence = number * devices + who + 1
    event_us = BEGIN_US + (number[:, None] * 6 + np.arange(6)) * STEP_US
    messages = Messages([f"d{d}" for d in who], event_us[:, -1] + 2_000_000, sequence, [b""] * len(who))
    value = values.reshape(devices, hours, 6).transpose(1, 0, 2)
    count = value.size
    message = np.repeat(np.arange(len(who)), 6)
    return watch.judge(messages, Readings(message, np.zeros(count, np.int16), event_us.ravel(), value.ravel()), [])


def test_a_doubling_that_no_device_of_the_fleet_ever_showed_is_found_by_its_ratio() -> None:
    """m/s become km/h on one of sixty gusty devices, after a batch border and a restart; the others are left alone."""
    promise = Promise("wind", 0, 500, (Change("km/h", 3.6, 0.0), Change("knot", 1.944, 0.0)))
    watch = Watch([promise], STEP_US)
    values = gusts(60, 2160)
    values[7, 2100:] *= 3.6
    found = [
        each for first in range(0, 2100, 36) for each in blow(watch, first, values[:, first : min(first + 36, 2100)])
    ]
    assert [each for each in found if each.certain] == []
    again = Watch([promise], STEP_US)
    absorb(again, keep(watch, list(watch.devices)))
    for _ in range(2):  # sent once more, as out of quarantine, it is judged by what came before it
        certain = [each for each in blow(again, 2100, values[:, 2100:]) if each.certain]
        assert [(each.device, each.change, each.since) for each in certain] == [("d7", "km/h", 2100 // 6 * 60 + 8)]
    event_us = BEGIN_US + np.arange(2100, 2160) * STEP_US
    changed = Series(np.full(60, again.devices["d7"]), np.arange(60), values[7, 2100:], event_us)
    jumps = [again.levels[0].ratios.judge(changed, 30_000 + np.arange(60), {}) for _ in range(2)]  # without decimals
    assert [(jumped.since, jumped.change) for (jumped,) in jumps] == [(30_000, 0)] * 2


def test_knots_made_of_hundredths_are_told_by_their_decimals() -> None:
    """A change among gusts that no single value shows: held from its first message on, then certain, over a restart."""
    promise = Promise("wind", 0, 500, (Change("km/h", 3.6, 0.0), Change("knot", 1.943844, 0.0)))
    watch = Watch([promise], STEP_US)
    values = gusts(3, 2160)
    values[1, 2046:] = np.round(values[1, 2046:] * 1.943844, 2)
    since = 2046 // 6 * 3 + 2
    for first in range(0, 2160, 18):
        again = Watch([promise], STEP_US)
        absorb(again, keep(watch, list(watch.devices)))
        watch = again
        certain = [each for each in blow(watch, first, values[:, first : first + 18]) if each.certain]
        if certain:
            assert [(each.device, each.change, each.since) for each in certain] == [("d1", "knot", since)]
            return
        assert watch.held() == ({"d1": since} if first >= 2034 else {})
    pytest.fail("never certain")


@pytest.mark.parametrize("digits", [0, 3])
def test_decimals_more_or_fewer_are_no_change_of_scale(digits: int) -> None:
    """Firmware that rounds otherwise, and no more, is left alone."""
    promise = Promise("power", -9, 99_999, (Change("times ten", 10.0, 0.0), Change("a tenth", 0.1, 0.0)))
    watch = Watch([promise], STEP_US)
    judge(watch, 0, celsius(1300))
    random = np.random.default_rng(5)
    finer = np.round(celsius(1900)[1300:] + random.uniform(-0.05, 0.05, 600), digits)
    found = [each for first in range(0, 600, 36) for each in judge(watch, 1300 + first, finer[first : first + 36])]
    assert [each for each in found if each.certain] == []
    assert watch.held() == {}


def chosen(series: Series, owners: int, enough: int) -> Points:
    last, last_us = np.arange(owners) * 1.5, np.arange(owners) * 10
    return choose(series, last, last_us, np.full(owners, enough))[0]


@given(
    senders=st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 4)), min_size=1, max_size=30),
    some=st.sets(st.integers(0, 3)),
    enough=st.integers(1, 40),
)
def test_the_points_of_some_devices_are_the_same_whoever_else_sends(
    senders: list[tuple[int, int]], some: set[int], enough: int
) -> None:
    """To look at some devices again, the readings of all others are left alone: nothing of theirs shows."""
    owner, number = np.array(senders, dtype=np.int64).T
    message = np.repeat(np.arange(len(owner)), number)
    series = Series(owner, message, np.arange(len(message)) * 1.0, np.arange(len(message)) * 7)
    every, theirs = chosen(series, 4, enough), chosen(series.of(np.array(sorted(some), dtype=np.int64)), 4, enough)
    kept = np.isin(every.owner, sorted(some))
    for name in ("owner", "message", "value", "event_us", "before", "before_us"):
        assert getattr(theirs, name).tolist() == getattr(every, name)[kept].tolist()
    assert theirs.chosen_before.tolist() == every.chosen_before[kept].tolist()
    assert theirs.chosen_before_us.tolist() == every.chosen_before_us[kept].tolist()
