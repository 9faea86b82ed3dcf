"""Decision 6 for every payload format: an agent that hears messages one by one cuts the windows that the lake has.

The lake decodes a whole batch at once, the agent in batches of any size; both call `harmonize`.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Readings
from fieldloop.domain.stream import WindowStream
from fieldloop.domain.windows import Windows, WindowSpec, device_history, window_hash
from tests.domain.live import pushed
from tests.domain.payloads.samples import NOON_US, PROFILES, SENDERS

MINUTE_US = 60_000_000
LENGTH = 4


def arriving(profile: Profile, bodies: Sequence[bytes]) -> Messages:
    """One message a minute of one device."""
    count = len(bodies)
    arrival_us = NOON_US + np.arange(count, dtype=np.int64) * MINUTE_US
    return Messages(["d1"] * count, arrival_us, np.arange(1, count + 1), list(bodies))


def live(profile: Profile, spec: WindowSpec, messages: Messages, cuts: Sequence[int]) -> Windows:
    """What an agent cuts that takes the messages in batches that end at `cuts`, and restarts after each."""
    codes, stream, parts = spec.channel_codes(profile), WindowStream(spec), []
    for begin, end in zip((0, *cuts), (*cuts, len(messages.payloads)), strict=True):
        if begin == end:
            continue
        readings, _ = harmonize(profile, messages.take(np.arange(begin, end)))
        parts.append(pushed(stream, spec, codes[readings.metric], readings.event_us, readings.value, readings.message))
        stream = WindowStream.restore(spec, stream.state())
    return Windows(np.concatenate([p.end_us for p in parts]), np.concatenate([p.values for p in parts]))


def history(profile: Profile, spec: WindowSpec, readings: Readings) -> Windows:
    """What preprocessing cuts from the same readings at once."""
    codes = spec.channel_codes(profile)
    grid, rows = device_history(codes[readings.metric], readings.event_us, readings.value, readings.message, spec)
    return Windows(grid.steps[rows] * spec.step_us, grid.windows(spec.length, rows))


@pytest.mark.parametrize("name", PROFILES)
@settings(max_examples=8)
@given(
    sent=st.lists(st.tuples(st.integers(-300, 500), st.integers(0, 100)), min_size=12, max_size=30),
    cuts=st.lists(st.integers(0, 12), max_size=4).map(sorted),
)
def test_live_windows_have_the_bits_of_the_lakes(name: str, sent: list[tuple[int, int]], cuts: list[int]) -> None:
    """Whatever the format, the values, and the batches in which the agent takes them."""
    profile = msgspec.structs.replace(PROFILES[name], cadence_us=MINUTE_US, future_tolerance_us=10**15)
    channels = profile.metrics()
    spec = WindowSpec(channels, ("mean",) * len(channels), MINUTE_US, LENGTH)
    bodies = [_at(name, minute, SENDERS[name](temp / 10, hum / 2)) for minute, (temp, hum) in enumerate(sent)]
    messages = arriving(profile, bodies)
    readings, rejects = harmonize(profile, messages)
    assert rejects == []
    cut_live, whole = live(profile, spec, messages, cuts), history(profile, spec, readings)
    assert len(whole.end_us) > 0
    np.testing.assert_array_equal(cut_live.end_us, whole.end_us)
    np.testing.assert_array_equal(window_hash(cut_live.values), window_hash(whole.values))


def _at(name: str, minute: int, body: bytes) -> bytes:
    """Move a payload that names noon itself on by minutes; formats without a time take their arrival."""
    noon_s = NOON_US // 1_000_000
    if name == "sparkplug-b":
        from fieldloop.domain.payloads.sparkplug import message_type

        payload = message_type().FromString(body)
        payload.timestamp += minute * 60_000
        return bytes(payload.SerializeToString())
    text = body
    for old, new in ((str(noon_s), str(noon_s + 60 * minute)), ("T12:00:00Z", f"T12:{minute:02}:00Z")):
        text = text.replace(old.encode(), new.encode())
    return text
