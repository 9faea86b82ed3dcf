"""What messages leave behind: the same readings however they are batched, and whoever reads on from what was kept."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expectations.zones import compile_zone
from fieldloop.domain.carry import Carried, Carry
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Clock, Profile
from fieldloop.domain.readings import Messages, Reason
from tests.domain.payloads.samples import NOON_US, PROFILES, sparkplug

SPARKPLUG = msgspec.structs.replace(PROFILES["sparkplug-b"], aliases=())
MINUTE = timedelta(minutes=1)
PARIS = ZoneInfo("Europe/Paris")
NIGHT = datetime(2015, 10, 24, 23, 30, tzinfo=UTC)  # 01:30 in Paris; 02:00 to 03:00 comes twice
LOCAL = msgspec.structs.replace(
    PROFILES["json"], clock=Clock("t", "iso", zone=compile_zone("Europe/Paris")), cadence_us=600_000_000
)

Batches = Sequence[int]


def at_once(profile: Profile, messages: Messages) -> list[tuple[int, int, int, float]]:
    readings, _ = harmonize(profile, messages)
    return list(
        zip(*(getattr(readings, name).tolist() for name in ("message", "metric", "event_us", "value")), strict=True)
    )


def by_gateway(profile: Profile, messages: Messages, cuts: Batches) -> list[tuple[int, int, int, float]]:
    """Taken in batches that end at `cuts`, by a process that restarts from the newest state after each."""
    found, kept = [], msgspec.msgpack.encode([])
    for begin, end in zip((0, *cuts), (*cuts, len(messages.sequence)), strict=True):
        carry = Carry(msgspec.msgpack.decode(kept, type=list[tuple[str, int, Carried]]))
        part = messages.take(np.arange(begin, end))
        part = Messages(part.devices, part.arrival_us, part.sequence, part.payloads, carry)
        found += [(message + begin, *rest) for message, *rest in at_once(profile, part)]
        kept = msgspec.msgpack.encode(carry.newest())
    return found


def by_lake(profile: Profile, messages: Messages, cuts: Batches) -> list[tuple[int, int, int, float]]:
    """Taken in batches, each of them a second time by a process that knows all that the first one left behind."""
    found, kept = [], []
    for begin, end in zip((0, *cuts), (*cuts, len(messages.sequence)), strict=True):
        part = messages.take(np.arange(begin, end))
        for _ in range(2):
            carry = Carry(kept)
            again = Messages(part.devices, part.arrival_us, part.sequence, part.payloads, carry)
            readings = [(message + begin, *rest) for message, *rest in at_once(profile, again)]
            kept = kept + carry.learnt()
        found += readings
    return found


CUTS = st.lists(st.integers(0, 14), max_size=5).map(sorted)
DATA = st.tuples(st.just("data"), st.integers(0, 3))
BIRTH = st.tuples(st.just("birth"), st.permutations(range(3)))


def spoken(said: tuple[str, object]) -> bytes:
    """A birth gives temp and hum two of three aliases; data come by an alias alone."""
    kind, what = said
    if kind == "data":
        return sparkplug({"alias": what, "double_value": 1.0})
    names = zip(("temp", "hum"), what, strict=False)
    return sparkplug(*({"name": name, "alias": alias, "double_value": 2.0} for name, alias in names))


@given(st.lists(st.tuples(st.sampled_from("ab"), DATA | BIRTH), min_size=14, max_size=20), CUTS)
def test_aliases_are_what_the_births_before_said(sent, cuts):
    """Two devices, births that come again with other aliases, any batches, restarts: lake and gateway read the same."""
    count = len(sent)
    bodies = [spoken(said) for _, said in sent]
    messages = Messages([device for device, _ in sent], np.full(count, NOON_US), np.arange(1, count + 1), bodies)
    expected, known = [], {"a": {}, "b": {}}
    for row, (device, (kind, what)) in enumerate(sent):
        if kind == "birth":
            known[device] |= {what[0]: 0, what[1]: 1}
            expected += [(row, 0, NOON_US, 2.0), (row, 1, NOON_US, 2.0)]
        elif what in known[device]:
            expected.append((row, known[device][what], NOON_US, 1.0))
    assert at_once(SPARKPLUG, messages) == expected
    assert by_gateway(SPARKPLUG, messages, cuts) == expected
    assert by_lake(SPARKPLUG, messages, cuts) == expected


def test_data_before_any_birth_are_refused_and_read_by_a_later_one_when_they_come_again():
    """The reason says what is missing; a replay knows the birth that came."""
    data, birth = spoken(("data", 1)), spoken(("birth", (0, 1, 2)))
    carry = Carry()
    messages = Messages(["a"] * 2, np.full(2, NOON_US), np.array([1, 2]), [data, birth], carry)
    readings, (refused,) = harmonize(SPARKPLUG, messages)
    assert (readings.message.tolist(), refused.message, refused.reason) == ([1, 1], 0, Reason.NO_BIRTH)
    assert "no birth (NBIRTH, DBIRTH) with it came before" in refused.detail
    again = Messages(["a"], np.array([NOON_US]), np.array([1]), [data], Carry(carry.learnt(), later=True))
    assert at_once(SPARKPLUG, again) == [(0, 1, NOON_US, 1.0)]


@given(
    st.lists(st.integers(0, 180), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([0, 2, 61, 200, 10**6]),
    CUTS,
)
def test_a_local_clock_in_autumn_reads_the_same_in_any_batches(skipped, records, late_min, cuts):
    """Live, late by an hour or more, or a backlog years later; with gaps; one or several records a message."""
    minutes = [10 * step for step in range(18) if step not in set(skipped)]
    moments = [NIGHT + minute * MINUTE for minute in minutes]
    grouped = [moments[first : first + records] for first in range(0, len(moments), records)]
    rows = [[{"t": f"{t.astimezone(PARIS):%Y-%m-%dT%H:%M:%S}", "temp": 1.0} for t in group] for group in grouped]
    arrival = [int((group[-1] + late_min * MINUTE).timestamp() * 1e6) for group in grouped]
    messages = Messages(
        ["d"] * len(rows), np.array(arrival), np.arange(1, len(rows) + 1), [msgspec.json.encode(row) for row in rows]
    )
    cuts = [cut for cut in cuts if cut <= len(rows)]
    whole = at_once(LOCAL, messages)
    assert by_gateway(LOCAL, messages, cuts) == whole
    assert by_lake(LOCAL, messages, cuts) == whole
    if not skipped or late_min == 2:
        assert [us for _, _, us, _ in whole] == [int(moment.timestamp() * 1e6) for moment in moments]


@pytest.mark.parametrize("batch", [1, 4, 18])
def test_a_backlog_message_by_message_steps_back_once(batch):
    """Years later, in batches that begin inside the second pass: every record gets its own moment."""
    moments = [NIGHT + 10 * step * MINUTE for step in range(18)]
    bodies = [msgspec.json.encode({"t": f"{t.astimezone(PARIS):%Y-%m-%dT%H:%M:%S}", "temp": 1.0}) for t in moments]
    messages = Messages(["d"] * 18, np.full(18, NOON_US + 10**15), np.arange(1, 19), bodies)
    found = by_gateway(LOCAL, messages, range(batch, 18, batch))
    assert [us for _, _, us, _ in found] == [int(moment.timestamp() * 1e6) for moment in moments]
