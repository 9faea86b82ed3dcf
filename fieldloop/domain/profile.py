"""The compiled device profile: what a device model promises, as plain coefficients and field paths.

It is compiled once from YAML (`expectations.profiles`) and travels inside every release, so that the gateway decodes
exactly as the platform does and needs neither YAML nor a unit library.
"""

from typing import Literal

import msgspec

ClockKind = Literal["iso", "epoch_s", "epoch_ms", "epoch_us"]
GridRule = Literal["last", "mean", "min", "max", "sum", "count"]


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One quantity that a device reports.

    Attributes:
        metric: canonical name, for instance `wind_speed`.
        field: path of the raw value in a record, dots for nesting.
        unit: canonical unit, for people.
        scale: canonical value = raw value * scale + offset.
        offset: see `scale`, in the canonical unit.
        minimum: smallest value the device can send, canonical unit; below it a reading goes to quarantine.
        maximum: largest value the device can send, canonical unit.
        rule: how several readings within one grid step become one value.
        description: one line for reports and forms.
    """

    metric: str
    field: str
    unit: str
    scale: float
    offset: float
    minimum: float
    maximum: float
    rule: GridRule
    description: str = ""


class Clock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record's event time is and how it is written."""

    field: str
    kind: ClockKind


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device model promises.

    Attributes:
        name: the profile's name, for instance `senvion-mm82`.
        format: payload format, a module of `fieldloop.domain.payloads`.
        device_field: path of the record's own device name, checked against the topic; None where records carry none.
        clock: the record's event time.
        cadence_us: regular distance of two records, microseconds.
        future_tolerance_us: how far event time may lie after arrival before a record is refused, microseconds.
        channels: the quantities, in the order of their codes in `Readings.metric`.
    """

    name: str
    format: Literal["json"]
    device_field: str | None
    clock: Clock
    cadence_us: int
    future_tolerance_us: int
    channels: tuple[Channel, ...]

    def metrics(self) -> tuple[str, ...]:
        """Return the canonical metric names, in the order of their codes."""
        return tuple(channel.metric for channel in self.channels)
