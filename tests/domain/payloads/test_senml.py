"""SenML packs: base values, relative times, units, and what must not be read."""

import json

import cbor2
import msgspec
import pytest

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import NOON_US, PAYLOAD_TIME, channel, messages, profile

T = NOON_US // 1_000_000
CELSIUS = (("Cel", 1.0, 0.0), ("K", 1.0, -273.15))
ROOM = profile(
    format="senml-json",
    clock=PAYLOAD_TIME,
    channels=(
        channel("temperature", "temp", declared=CELSIUS),
        channel("energy", "meter.s"),
        channel("door", "door", texts=(("open", 1.0), ("true", 1.0), ("false", 0.0))),
    ),
)


def read(pack: object, device: str = "d1", room=ROOM) -> tuple[list[tuple[int, float, int]], list[Reason]]:
    """Return (metric, value, microseconds after noon) of each reading, and the reasons of refusal."""
    readings, rejects = harmonize(room, messages(json.dumps(pack).encode(), device=device))
    after = (readings.event_us - NOON_US).tolist()
    found = list(zip(readings.metric.tolist(), readings.value.tolist(), after, strict=True))
    return found, [reject.reason for reject in rejects]


def test_base_values_hold_until_they_are_set_anew():
    """Name, time, value and sum; RFC 8428, section 4.1."""
    pack = [
        {"bn": "urn:dev:d1:", "bt": T - 10, "bv": 20, "bs": 100, "bu": "Cel", "n": "temp", "v": 1.5},
        {"n": "temp", "t": 5, "v": 2},
        {"bv": 0, "n": "temp", "t": 10, "v": 3},
        {"n": "meter", "t": 10, "s": 7},
    ]
    assert read(pack) == ([(0, 21.5, -10_000_000), (0, 22.0, -5_000_000), (0, 3.0, 0), (1, 107.0, 0)], [])


def test_base_values_have_their_numbers_in_cbor():
    """The same pack by RFC 8428's table of labels."""
    pack = [{-2: "urn:dev:d1:", -3: T - 10, -5: 20, -6: 100, -4: "K", 0: "temp", 2: 280.0}, {0: "meter", 6: 10, 5: 7}]
    readings, rejects = harmonize(msgspec.structs.replace(ROOM, format="senml-cbor"), messages(cbor2.dumps(pack)))
    assert (readings.value.tolist(), rejects) == ([pytest.approx(26.85), 107.0], [])
    assert (readings.event_us - NOON_US).tolist() == [-10_000_000, 0]


def test_small_times_are_relative_to_the_arrival():
    """RFC 8428, section 4.5.3: below 2^28 seconds, and none at all is now."""
    pack = [{"n": "temp", "v": 1}, {"n": "temp", "t": -90.5, "v": 2}]
    assert read(pack) == ([(0, 1.0, 0), (0, 2.0, -90_500_000)], [])


def test_a_declared_unit_is_converted_and_a_strange_one_refused():
    """A device that sends kelvin says so; one that sends volts as a temperature is refused."""
    found, reasons = read([{"n": "temp", "u": "K", "v": 300}, {"n": "temp", "u": "V", "v": 3}])
    assert found == [(0, pytest.approx(26.85), 0)]
    assert reasons == [Reason.UNKNOWN_UNIT]


def test_text_and_boolean_values_take_their_meaning():
    """And data values are no number."""
    assert read([{"n": "door", "vb": False}]) == ([(2, 0.0, 0)], [])
    assert read([{"n": "door", "vs": "open"}]) == ([(2, 1.0, 0)], [])
    assert read([{"n": "door", "vd": "aGk"}]) == ([], [Reason.WRONG_TYPE])


def test_the_base_name_is_checked_against_the_topic():
    """With what stands between it and the quantity left aside."""
    named = profile(format="senml-json", clock=PAYLOAD_TIME, device_field="bn")
    assert read([{"bn": "d1/", "n": "temp", "v": 1}], room=named) == ([(0, 1.0, 0)], [])
    assert read([{"bn": "d2/", "n": "temp", "v": 1}], room=named) == ([], [Reason.WRONG_DEVICE])


@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        ({"n": "temp", "v": 1}, Reason.UNDECODABLE),
        ([{"n": "temp", "v": "1"}], Reason.UNDECODABLE),
        ([{"n": "temp", "v": 1, "must_": 1}], Reason.UNDECODABLE),
        ([{"bver": 11, "n": "temp", "v": 1}], Reason.UNDECODABLE),
        ([{"n": "temp", "t": 1e300, "v": 1}], Reason.NO_EVENT_TIME),
        ([{"n": "pressure", "v": 1}], Reason.UNKNOWN_METRIC),
    ],
)
def test_what_must_not_be_read_is_refused(pack, reason):
    """Wrong shapes, later versions, extensions that must be understood, absurd times, unknown names."""
    assert read(pack) == ([], [reason])


def test_further_labels_are_passed_over():
    """RFC 8428, section 4.4: those that do not end in an underscore."""
    assert read([{"n": "temp", "v": 1, "ut": 5, "x": [1]}]) == ([(0, 1.0, 0)], [])


@pytest.mark.parametrize(
    "payload",
    [
        cbor2.dumps({0: "temp", 2: 1}),
        cbor2.dumps([[1]]),
        cbor2.dumps([{0: "temp", 2: "1"}]),
        cbor2.dumps([{0: "temp", 2: 1, "must_": 1}]),
        cbor2.dumps([{0: "temp", 2: 1 << 2000}]),
        bytes.fromhex("81a2006474656d7002c4821a7fffffff01"),
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 100_000,
    ],
)
def test_strange_cbor_is_refused(payload):
    """Other shapes, numbers beyond floats, lengths that lie, and endless nesting."""
    room = profile(format="senml-cbor", clock=PAYLOAD_TIME)
    good = cbor2.dumps([{-3: T, 0: "temp", 2: 1, 8: b"\x00", "x": 1}])
    readings, rejects = harmonize(room, messages(good, payload, good))
    assert readings.message.tolist() == [0, 2]
    assert [reject.message for reject in rejects] == [1]
