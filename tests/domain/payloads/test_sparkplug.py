"""Sparkplug B: types, times, aliases, and metrics that are no value."""

import msgspec
import pytest

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import NOON_US, PROFILES, channel, messages, sparkplug

PROBE = msgspec.structs.replace(
    PROFILES["sparkplug-b"],
    channels=(channel("temperature", "temp"), channel("humidity", "hum"), channel("on", "on", texts=(("true", 1.0),))),
    ignore=("bdSeq",),
)
NOON_MS = NOON_US // 1000


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ({"datatype": 1, "int_value": 0xFF}, -1.0),
        ({"datatype": 2, "int_value": 0xFFFFFFFE}, -2.0),
        ({"datatype": 3, "int_value": 0x80000000}, -2147483648.0),
        ({"datatype": 4, "long_value": (1 << 64) - 5}, -5.0),
        ({"datatype": 7, "int_value": 0xFFFFFFFF}, 4294967295.0),
        ({"datatype": 9, "float_value": 1.5}, 1.5),
        ({"long_value": 7}, 7.0),
    ],
)
def test_integers_are_signed_as_their_type_says(metric, value):
    """Sparkplug puts signed integers into unsigned fields."""
    readings, rejects = harmonize(PROBE, messages(sparkplug({"name": "temp", **metric})))
    assert (readings.value.tolist(), rejects) == ([value], [])


def test_a_metrics_own_time_goes_before_the_payloads_and_the_arrival():
    """History comes with times of its own."""
    old = {"name": "temp", "timestamp": NOON_MS - 1000, "double_value": 1.0}
    new = {"name": "temp", "double_value": 2.0}
    readings, _ = harmonize(PROBE, messages(sparkplug(old, new), sparkplug(new, timestamp=None)))
    assert readings.event_us.tolist() == [NOON_US - 1_000_000, NOON_US, NOON_US]


def test_two_values_of_one_metric_and_time_are_both_kept():
    """Which of them counts is not for the decoder to say."""
    same = [{"name": "temp", "double_value": value} for value in (1.0, 2.0)]
    readings, _ = harmonize(PROBE, messages(sparkplug(*same)))
    assert readings.value.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("metric", "reasons"),
    [
        ({"name": "temp", "is_null": True}, []),
        ({"name": "bdSeq", "long_value": 3}, []),
        ({"name": "new", "double_value": 1.0}, [Reason.UNKNOWN_METRIC]),
        ({"alias": 9, "double_value": 1.0}, [Reason.NO_BIRTH]),
        ({"name": "temp", "boolean_value": True}, [Reason.WRONG_TYPE]),
        ({"name": "temp", "template_value": b"12"}, [Reason.WRONG_TYPE]),
        ({"name": "temp", "timestamp": 1 << 63, "double_value": 1.0}, [Reason.NO_EVENT_TIME]),
    ],
)
def test_what_is_no_value_is_named_or_passed_over(metric, reasons):
    """Nulls and ignored metrics in silence; the metric beside it is read."""
    readings, rejects = harmonize(PROBE, messages(sparkplug(metric, {"name": "on", "boolean_value": True})))
    assert [reject.reason for reject in rejects] == reasons
    assert readings.metric.tolist() == [2]
