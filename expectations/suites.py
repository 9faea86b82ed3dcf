"""What a device profile promises, as expectations; `inspection` runs them.

Two suites: `devices` looks at a row a device (`frames.device_frame`) and so finds the device that is bad; `readings`
looks at all rows of the devices that are left (`frames.wide_frame`) and says whether the data set as a whole is good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from expectations.frames import KEYS
from expectations.profiles import ChannelDocument, ProfileDocument
from expectations.references import MetricSuite

EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # a clock that was never set shows 1970 or 1980

_BETWEEN: Final = "expect_column_values_to_be_between"
_NOT_NULL: Final = "expect_column_values_to_not_be_null"


@dataclass(frozen=True)
class Expected:
    """One expectation as Great Expectations knows it, in plain values.

    Attributes:
        expectation: its name.
        column: the column that it looks at; empty where it looks at whole rows.
        description: the same in a person's words, so that "expected" can stand before it.
        arguments: its further arguments.
    """

    expectation: str
    column: str
    description: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def device_expectations(parsed: ProfileDocument, known: Sequence[str]) -> list[Expected]:
    """Return what is asked of each device by itself, on the columns of `frames.device_frame`.

    Args:
        parsed: the profile.
        known: the devices that are enrolled under it.
    """
    quality = parsed.quality
    wanted = [_known_device(parsed, known)]
    for channel in parsed.channels:
        metric = channel.metric
        changes = f"{metric} to change within {quality.dead_after}"
        wanted += [
            Expected(_BETWEEN, f"{metric}_complete", _complete(channel, parsed), {"min_value": quality.completeness}),
            Expected(_BETWEEN, f"{metric}_plausible", _plausible(channel, parsed), {"min_value": quality.plausible}),
            Expected(_BETWEEN, f"{metric}_spread", changes, {"min_value": 0, "strict_min": True}),
        ]
    return wanted


def reference_expectations(reference: Sequence[MetricSuite]) -> list[Expected]:
    """Return what is asked of each device by a suite from a data set, on the columns of `frames.device_frame`."""
    wanted = []
    for each in reference:
        complete = f"{each.metric} to have a value in at least {each.complete:.4g} of the rows, as in the reference"
        usual = f"{each.metric} {each.describe()}, as in the reference, at least {each.usual:.4g} as often as the fleet"
        wanted += [
            Expected(_BETWEEN, f"{each.metric}_complete", complete, {"min_value": each.complete}),
            Expected(_BETWEEN, f"{each.metric}_usual", usual, {"min_value": each.usual}),
        ]
    return wanted


def reading_expectations(parsed: ProfileDocument, known: Sequence[str], latest: datetime) -> list[Expected]:
    """Return what is asked of all rows together, on the columns of `frames.wide_frame`.

    Args:
        parsed: the profile.
        known: the devices that are enrolled under it.
        latest: the last event time that can be, with a time zone.
    """
    time = "event_time"
    earliest_text, latest_text = f"no time before {EARLIEST:%Y}", f"no time after {latest:%Y-%m-%d %H:%M} UTC"
    return [
        Expected("expect_table_row_count_to_be_between", "", "at least one row", {"min_value": 1}),
        Expected("expect_compound_columns_to_be_unique", "", "one row a device and time", {"column_list": list(KEYS)}),
        _known_device(parsed, known),
        Expected(_NOT_NULL, time, "every row to have a time"),
        Expected("expect_column_min_to_be_between", time, earliest_text, {"min_value": EARLIEST}),
        Expected("expect_column_max_to_be_between", time, latest_text, {"max_value": latest}),
        *(expected for channel in parsed.channels for expected in _reading_channel(channel, parsed)),
    ]


def _known_device(parsed: ProfileDocument, known: Sequence[str]) -> Expected:
    """The device is one of those enrolled."""
    description = f"the device to be enrolled under profile {parsed.name}"
    return Expected("expect_column_values_to_be_in_set", "device", description, {"value_set": list(known)})


def _reading_channel(channel: ChannelDocument, parsed: ProfileDocument) -> list[Expected]:
    """All rows of one channel."""
    metric, quality = channel.metric, parsed.quality
    low, high = channel.range
    can_send = f"{metric} within what the device can send, {low:g} to {high:g} {channel.unit}"
    wanted = [
        Expected(_NOT_NULL, metric, _complete(channel, parsed), {"mostly": quality.completeness}),
        Expected(_BETWEEN, metric, can_send, {"min_value": low, "max_value": high}),
    ]
    if channel.plausible:
        low, high = channel.plausible
        arguments = {"min_value": low, "max_value": high, "mostly": quality.plausible}
        wanted.append(Expected(_BETWEEN, metric, _plausible(channel, parsed), arguments))
    return wanted


def _complete(channel: ChannelDocument, parsed: ProfileDocument) -> str:
    """Say the completeness that is asked."""
    return f"{channel.metric} to have a value in at least {parsed.quality.completeness:.4g} of the rows"


def _plausible(channel: ChannelDocument, parsed: ProfileDocument) -> str:
    """Say the plausible share that is asked."""
    low, high = channel.plausible or channel.range
    share = f"at least {parsed.quality.plausible:.4g} of the values"
    return f"{channel.metric} within {low:g} to {high:g} {channel.unit} in {share}"
