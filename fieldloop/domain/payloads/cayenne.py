"""Cayenne LPP payloads: channel, type and value, one after another, in the device's own choice and order.

Values bear the names that The Things Stack gives them: `temperature_1`, `gps_3.latitude`.
"""

from collections.abc import Sequence

from fieldloop.domain.columns import Column
from fieldloop.domain.payloads.records import unknown_field
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Reason, Reject

# Type number: name, then for each value its own name, bytes, whether it is signed, and what it is divided by.
_TYPES: dict[int, tuple[str, tuple[tuple[str, int, bool, int], ...]]] = {
    0: ("digital_in", (("", 1, False, 1),)),
    1: ("digital_out", (("", 1, False, 1),)),
    2: ("analog_in", (("", 2, True, 100),)),
    3: ("analog_out", (("", 2, True, 100),)),
    100: ("generic", (("", 4, False, 1),)),
    101: ("luminosity", (("", 2, False, 1),)),
    102: ("presence", (("", 1, False, 1),)),
    103: ("temperature", (("", 2, True, 10),)),
    104: ("relative_humidity", (("", 1, False, 2),)),
    113: ("accelerometer", ((".x", 2, True, 1000), (".y", 2, True, 1000), (".z", 2, True, 1000))),
    115: ("barometric_pressure", (("", 2, False, 10),)),
    116: ("voltage", (("", 2, False, 100),)),
    117: ("current", (("", 2, False, 1000),)),
    118: ("frequency", (("", 4, False, 1),)),
    120: ("percentage", (("", 1, False, 1),)),
    121: ("altitude", (("", 2, True, 1),)),
    125: ("concentration", (("", 2, False, 1),)),
    128: ("power", (("", 2, False, 1),)),
    130: ("distance", (("", 4, False, 1000),)),
    131: ("energy", (("", 4, False, 1000),)),
    132: ("direction", (("", 2, False, 1),)),
    133: ("unix_time", (("", 4, False, 1),)),
    134: ("gyrometer", ((".x", 2, True, 100), (".y", 2, True, 100), (".z", 2, True, 100))),
    135: ("colour", ((".r", 1, False, 1), (".g", 1, False, 1), (".b", 1, False, 1))),
    136: ("gps", ((".latitude", 3, True, 10_000), (".longitude", 3, True, 10_000), (".altitude", 3, True, 100))),
    142: ("switch", (("", 1, False, 1),)),
}
_HEAD_BYTES = 2


def read(
    profile: Profile, payloads: Sequence[bytes], _ports: Sequence[float | None]
) -> tuple[dict[str, Column], list[Reject]]:
    """Return a column ([N] numbers, None where there is none) a channel, and what is refused, by place in `payloads`.

    Args:
        profile: gives the names that are wanted.
        payloads: [N] the devices' bytes; empty ones have no value and no fault.
        _ports: not asked: the payload describes itself.
    """
    columns: dict[str, list[object]] = {channel.field: [None] * len(payloads) for channel in profile.channels}
    faults: list[Reject] = []
    for at, payload in enumerate(payloads):
        values, fault = _values(payload)
        for name, value in values.items():
            if name in columns:
                columns[name][at] = value
            elif not profile.ignores(name):
                faults.append(unknown_field(at, name))
        if fault:
            faults.append(Reject(at, None, Reason.UNDECODABLE, fault))
    return dict(columns), faults


def _values(payload: bytes) -> tuple[dict[str, float], str | None]:
    """Return the values up to the first byte that makes no sense, and what is wrong there."""
    values: dict[str, float] = {}
    place = 0
    while place < len(payload):
        number = payload[place + 1] if place + 1 < len(payload) else -1
        if number not in _TYPES:
            got = "the end" if number < 0 else number
            return values, f"byte {place + 1}: expected the number of a Cayenne LPP type, got {got}"
        name, parts = _TYPES[number]
        channel, place = payload[place], place + _HEAD_BYTES
        if place + sum(size for _, size, _, _ in parts) > len(payload):
            return values, f"byte {place}: expected the value of `{name}_{channel}`, got the end"
        for part, size, signed, divisor in parts:
            raw = int.from_bytes(payload[place : place + size], "big", signed=signed)
            values[f"{name}_{channel}{part}"] = raw / divisor
            place += size
    return values, None
