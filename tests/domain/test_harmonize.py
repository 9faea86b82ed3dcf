"""Messages to readings: what is good is kept to the bit, what is not is named."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.harmonize import MAX_PAYLOAD_BYTES, harmonize
from fieldloop.domain.profile import Channel, Clock, Profile
from fieldloop.domain.readings import Messages, Reason

NOON_US = 1_420_113_600_000_000  # 2015-01-01T12:00:00Z

PROFILE = Profile(
    name="probe",
    format="json",
    device_field="id",
    clock=Clock("t", "iso"),
    cadence_us=600_000_000,
    future_tolerance_us=60_000_000,
    channels=(
        Channel("wind_speed", "ws", "m/s", 1.0, 0.0, 0.0, 100.0, "mean"),
        Channel("outdoor_temperature", "env.temp", "degC", 1.0, -273.15, -50.0, 60.0, "mean"),
    ),
)


def messages(*payloads: object, device: str = "d1") -> Messages:
    raw = [p if isinstance(p, bytes) else json.dumps(p).encode() for p in payloads]
    count = len(raw)
    return Messages([device] * count, np.full(count, NOON_US), np.arange(1, count + 1), raw)


def record(**changes: object) -> dict[str, object]:
    return {"id": "d1", "t": "2015-01-01T12:00:00+00:00", "ws": 5.5, "env": {"temp": 290.0}} | changes


def test_nested_record_is_harmonized_to_canonical_units():
    """Kelvin in a nested field become degrees Celsius; the time's offset is taken off."""
    readings, rejects = harmonize(PROFILE, messages(record(t="2015-01-01T13:00:00+01:00")))
    assert not rejects
    assert readings.metric.tolist() == [0, 1]
    assert readings.event_us.tolist() == [NOON_US, NOON_US]
    assert readings.value.tolist() == pytest.approx([5.5, 16.85])


def test_array_of_records_with_null_cells_keeps_order_and_skips_nulls():
    """A missing cell is no reading, and says nothing."""
    first, second = record(ws=None), record(t="2015-01-01T11:50:00Z")
    readings, rejects = harmonize(PROFILE, messages([first, second], record(env={})))
    assert not rejects
    assert readings.message.tolist() == [0, 0, 0, 1]
    assert readings.metric.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("payload", "reason", "metric"),
    [
        (b"{not json", Reason.UNDECODABLE, None),
        (b"\xff\xfe", Reason.UNDECODABLE, None),
        (b"", Reason.UNDECODABLE, None),
        (b"[" * 100_000, Reason.UNDECODABLE, None),
        (b" " * (MAX_PAYLOAD_BYTES + 1), Reason.TOO_LARGE, None),
        (b"17", Reason.WRONG_TYPE, None),
        (record(humidity=3), Reason.UNKNOWN_METRIC, "humidity"),
        (record(ws="fast"), Reason.WRONG_TYPE, "wind_speed"),
        (record(ws=True), Reason.WRONG_TYPE, "wind_speed"),
        (record(env=7), Reason.UNKNOWN_METRIC, "env"),
        (record(ws=101), Reason.OUT_OF_RANGE, "wind_speed"),
        (record(t="2015-01-01T12:02:00Z"), Reason.FUTURE, None),
        (record(t="2015-01-01T12:00:00"), Reason.NO_EVENT_TIME, None),
        (record(t=None), Reason.NO_EVENT_TIME, None),
        (record(t=5), Reason.NO_EVENT_TIME, None),
        (record(id="d2"), Reason.WRONG_DEVICE, None),
    ],
)
def test_bad_message_is_named_and_costs_only_itself(payload, reason, metric):
    """Whatever stands between two good messages, their readings are kept and its trouble is named."""
    readings, rejects = harmonize(PROFILE, messages(record(), payload, record()))
    named = [reject for reject in rejects if reject.reason == reason]
    assert [(reject.message, reject.metric) for reject in named] == [(1, metric)]
    assert all(reject.message == 1 and reject.detail for reject in rejects)
    assert (readings.message == 0).sum() == 2
    assert (readings.message == 2).sum() == 2


def test_good_fields_of_a_bad_record_are_kept():
    """One wrong field does not cost its neighbours."""
    readings, rejects = harmonize(PROFILE, messages(record(ws="fast", extra=1)))
    assert {reject.reason for reject in rejects} == {Reason.WRONG_TYPE, Reason.UNKNOWN_METRIC}
    assert readings.metric.tolist() == [1]


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_break_the_batch(noise):
    """Any bytes are accepted or refused, never raised."""
    readings, rejects = harmonize(PROFILE, messages(*noise, record()))
    assert (readings.message == len(noise)).sum() == 2
    assert {reject.message for reject in rejects} <= set(range(len(noise)))


@given(st.lists(st.floats(0, 100) | st.none(), min_size=1, max_size=50))
def test_values_survive_to_the_bit(speeds):
    """What the device wrote is what is read."""
    readings, rejects = harmonize(PROFILE, messages([record(ws=speed, env={}) for speed in speeds]))
    assert not rejects
    assert readings.value.tolist() == [speed for speed in speeds if speed is not None]


def test_profile_round_trips_through_json():
    """A release carries the compiled profile as JSON."""
    assert msgspec.json.decode(msgspec.json.encode(PROFILE), type=Profile) == PROFILE
