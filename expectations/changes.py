"""The changes of unit and scale that the contract watch looks for: what firmware updates do to a channel.

Units of the same quantity that devices are known to send, and powers of ten. `pint` turns them into plain coefficients
here, once; the watch itself knows no units.
"""

import math
from decimal import Decimal
from typing import Final

from expectations.profiles import ChannelDocument, ProfileDocument, coefficients, compatible
from fieldloop.domain.contract.promise import Change, Promise

UNITS: Final = (
    "degC", "degF", "kelvin",
    "W", "kW", "MW", "horsepower", "Wh", "kWh", "MWh", "J", "kJ", "MJ",
    "m/s", "km/h", "mph", "knot", "ft/s",
    "Pa", "hPa", "kPa", "bar", "psi", "mmHg", "inHg",
    "V", "mV", "kV", "A", "mA", "Hz", "kHz", "rpm",
    "deg", "rad", "grad", "dimensionless", "percent", "ppm",
    "mm", "cm", "m", "km", "inch", "ft", "mile",
    "g", "kg", "lb", "L", "m^3", "gallon", "L/min", "L/s", "m^3/h", "gallon/min",
    "s", "ms", "min", "hour", "lux", "g/m^3", "mg/m^3", "ug/m^3",
)  # fmt: skip
POWERS: Final = (1, -1, 2, -2, 3, -3)  # of ten
LEAST: Final = 1.2  # factor between two units; what differs by less, weather hides

_SAME: Final = 1e-3  # relative difference of two factors that are one
_FULL_TURN: Final = 1.01  # turns that the range of a channel may span which goes round


def promises(profile: ProfileDocument) -> tuple[Promise, ...]:
    """Return what each channel of a profile is held to, in the profile's order."""
    return tuple(
        Promise(
            channel.metric,
            channel.range[0],
            channel.range[1],
            _changes(channel),
            _turn(channel),
            *coefficients(channel.source_unit, channel.unit),
        )
        for channel in profile.channels
    )


def _changes(channel: ChannelDocument) -> tuple[Change, ...]:
    """Return the changes of one channel; of those that come to the same, the one with a name."""
    scale, offset = coefficients(channel.source_unit, channel.unit)
    found: list[Change] = []
    for unit in UNITS:
        if unit != channel.source_unit and compatible(unit, channel.source_unit):
            own_scale, own_offset = coefficients(channel.unit, unit)
            name = f"as if sent in {unit}, not {channel.source_unit}"
            _add(found, Change(name, scale * own_scale, scale * own_offset + offset))
    for power in POWERS:
        factor = float(Decimal(10) ** power)
        large = f"{factor:,.0f}" if power > 0 else f"1/{1 / factor:,.0f}"
        _add(found, Change(f"as if multiplied by {large}", factor, offset * (1 - factor)))
    return tuple(found)


def _add(found: list[Change], change: Change) -> None:
    """Add a change unless it is too small to be seen, turns the sign, or is there already."""
    if change.scale <= 0 or (abs(math.log(change.scale)) < math.log(LEAST) and change.offset == 0):
        return
    known = any(
        abs(change.scale / other.scale - 1) < _SAME and math.isclose(change.offset, other.offset, abs_tol=1e-9)
        for other in found
    )
    if not known:
        found.append(change)


def _turn(channel: ChannelDocument) -> float | None:
    """Return a full turn in the channel's unit where it is an angle whose range goes once round."""
    if channel.unit in ("dimensionless", "percent", "ppm") or not compatible(channel.unit, "rad"):
        return None
    turn = coefficients("turn", channel.unit)[0]
    return turn if channel.range[1] - channel.range[0] <= _FULL_TURN * turn else None
