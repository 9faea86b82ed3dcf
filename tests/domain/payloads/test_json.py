"""JSON payloads: what is passed over, what texts mean, and documents of every shape."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import NOON_US, channel, messages, profile

T = NOON_US // 1_000_000
NESTED = profile(
    channels=(
        channel("temperature", "obj.temp"),
        channel("moved", "obj.moved", texts=(("true", 1.0), ("false", 0.0))),
        channel("wind_direction", "wd", texts=(("N", 0.0), ("NNE", 22.5)), missing=("NA", -9999.0)),
    ),
    ignore=("rssi", "obj.version.*", "meta.*"),
)
keys = st.sampled_from(["t", "obj", "obj.temp", "temp", "moved", "wd", "rssi", "version", "meta", "x", ""])
leaves = st.none() | st.booleans() | st.integers() | st.integers(1 << 60, 1 << 2000) | st.floats() | st.text(max_size=5)
documents = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5))


def read(*records: object) -> tuple[list[tuple[int, float]], list[tuple[str | None, Reason]]]:
    readings, rejects = harmonize(NESTED, messages(*(json.dumps(record).encode() for record in records)))
    found = list(zip(readings.metric.tolist(), readings.value.tolist(), strict=True))
    return found, [(reject.metric, reject.reason) for reject in rejects]


def test_texts_and_booleans_take_the_meaning_that_the_profile_gives():
    """A compass point is its angle, a switch is 0 or 1; numbers stay numbers."""
    assert read({"t": T, "obj": {"moved": True}, "wd": "NNE"}) == ([(1, 1.0), (2, 22.5)], [])
    assert read({"t": T, "obj": {"moved": False}, "wd": 7}) == ([(1, 0.0), (2, 7.0)], [])


def test_status_codes_are_missing_values():
    """They make neither a reading nor a reject."""
    assert read({"t": T, "wd": "NA", "obj": {"temp": 1}}, {"t": T, "wd": -9999}) == ([(0, 1.0)], [])


def test_a_text_without_meaning_costs_only_itself():
    """It is named with the texts that the channel knows."""
    _, rejects = harmonize(NESTED, messages(json.dumps({"t": T, "wd": "NW", "obj": {"temp": 1}}).encode()))
    assert [(r.metric, r.detail) for r in rejects] == [
        ("wind_direction", 'field `wd`: expected a number or one of N, NNE, got "NW"')
    ]


def test_ignored_fields_are_passed_over_and_others_are_named():
    """By name, and all beneath a branch, however deep."""
    frame = {"t": T, "obj": {"temp": 1, "version": {"a": {"b": 1}}}, "rssi": [1, {}], "meta": {"x": "y"}}
    assert read(frame) == ([(0, 1.0)], [])
    assert read(frame | {"obj": {"temp": 2, "new": 3}})[1] == [("obj.new", Reason.UNKNOWN_METRIC)]


@pytest.mark.parametrize("branch", [None, {}, {"temp": None}])
def test_a_branch_without_values_is_no_trouble(branch):
    """Some decoders send an empty or null object where there is nothing to say."""
    assert read({"t": T, "obj": branch, "wd": 1}) == ([(2, 1.0)], [])


@given(st.lists(documents, max_size=5))
def test_no_document_breaks_a_batch(shapes):
    """Whatever JSON can say, with the profile's own names in wrong places too."""
    good = {"t": T, "obj": {"temp": 1}}
    found, _ = read(good, *shapes, good)
    assert found[0] == found[-1] == (0, 1.0)
