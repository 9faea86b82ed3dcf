"""SenML packs in JSON or CBOR (RFC 8428): base values resolved, relative times counted from the arrival.

A channel's field is a record's name, either as the record gives it or with the base name before it; `<name>.s` is its
sum. Text and boolean values take the meaning that the channel gives them. A record that names its unit is converted
from that unit, whatever the profile says of the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from fieldloop.domain.payloads.records import Points, Records, shown, to_records, unknown_field
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject

VERSION = 10  # RFC 8428, section 4.4
RELATIVE_BELOW_S = 1 << 28  # smaller times are relative to now: RFC 8428, section 4.5.3

_LATEST_S = 253_402_300_800.0  # the year 10000
_LABELS = {-1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs"} | dict(
    enumerate(("n", "u", "v", "vs", "vb", "s", "t", "ut", "vd"))
)  # RFC 8428, table 4
_DEVICE_ENDS = ":/-._"  # what stands between a device's name and a quantity's


class _Entry(msgspec.Struct, gc=False):
    """One record of a pack, unresolved."""

    bver: int | None = None
    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bs: float | None = None
    n: str = ""
    u: str | None = None
    v: float | None = None
    vs: str | None = None
    vb: bool | None = None
    vd: Any = None
    s: float | None = None
    t: float = 0.0


@dataclass
class _Base:
    """The base values of a pack, each until a record sets it anew."""

    name: str = ""
    time: float = 0.0
    unit: str | None = None
    value: float = 0.0
    sum: float = 0.0

    def take(self, entry: _Entry) -> None:
        """Take over what a record sets."""
        self.name = self.name if entry.bn is None else entry.bn
        self.time = self.time if entry.bt is None else entry.bt
        self.unit = self.unit if entry.bu is None else entry.bu
        self.value = self.value if entry.bv is None else entry.bv
        self.sum = self.sum if entry.bs is None else entry.bs


def decode_json(profile: Profile, messages: Messages) -> Records:
    """Decode SenML JSON messages of devices of one profile; one bad message or record costs only itself."""
    decoder = msgspec.json.Decoder(list[_Entry])

    def read(payload: bytes) -> list[_Entry]:
        if b'_"' in payload:
            _refuse_unknown(msgspec.json.decode(payload))
        return decoder.decode(payload)

    return _decode(profile, messages, read)


def decode_cbor(profile: Profile, messages: Messages) -> Records:
    """Decode SenML CBOR messages of devices of one profile; one bad message or record costs only itself."""
    import cbor2

    def read(payload: bytes) -> list[_Entry]:
        try:
            pack = cbor2.loads(payload)
        except (cbor2.CBORError, RecursionError, MemoryError, OverflowError, ValueError) as error:
            raise msgspec.DecodeError(str(error)) from error
        if not isinstance(pack, list) or not all(isinstance(entry, Mapping) for entry in pack):
            raise msgspec.DecodeError(f"expected an array of maps, got {shown(pack)}")
        named = [{_LABELS.get(label, label): value for label, value in entry.items()} for entry in pack]
        _refuse_unknown(named)
        known = [{label: value for label, value in entry.items() if isinstance(label, str)} for entry in named]
        return msgspec.convert(known, list[_Entry])

    return _decode(profile, messages, read)


def _decode(profile: Profile, messages: Messages, read: Callable[[bytes], list[_Entry]]) -> Records:
    points = Points(len(profile.channels))
    pack = _Pack(profile, points)
    for row, payload in enumerate(messages.payloads):
        try:
            entries = read(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            points.rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected a SenML pack: {error}"))
            continue
        pack.resolve(row, messages.devices[row], int(messages.arrival_us[row]), entries)
    return to_records(profile, messages, points.table())


class _Pack:
    """Resolves the records of packs, one pack after another."""

    def __init__(self, profile: Profile, points: Points) -> None:
        self._profile = profile
        self._points = points
        self._channel = {channel.field: number for number, channel in enumerate(profile.channels)}
        self._units = [
            {unit: (scale, offset) for unit, scale, offset in channel.declared} for channel in profile.channels
        ]

    def resolve(self, row: int, device: str, arrival_us: int, entries: list[_Entry]) -> None:
        """Add the values of one pack."""
        base = _Base()
        for entry in entries:
            if entry.bver is not None and entry.bver > VERSION:
                self._refuse(row, None, Reason.UNDECODABLE, f"expected SenML version {VERSION}, got {entry.bver}")
                return
            base.take(entry)
            time_us = _time_us(base.time + entry.t, arrival_us)
            if self._profile.device_field is not None and base.name.rstrip(_DEVICE_ENDS) != device:
                detail = f"the record's base name is `{base.name}`, its topic belongs to `{device}`"
                self._refuse(row, None, Reason.WRONG_DEVICE, detail)
            elif time_us is None:
                detail = f"expected a SenML time before the year 10000, got {base.time + entry.t:g} s"
                self._refuse(row, None, Reason.NO_EVENT_TIME, detail)
            else:
                self._add_values(row, time_us, base, entry)

    def _add_values(self, row: int, time_us: int, base: _Base, entry: _Entry) -> None:
        value = _value(entry, base.value)
        if value is not None:
            self._add(row, time_us, (entry.n, base.name + entry.n), entry.u or base.unit, value)
        if entry.s is not None:
            self._add(row, time_us, (f"{entry.n}.s", f"{base.name}{entry.n}.s"), None, base.sum + entry.s)

    def _add(self, row: int, time_us: int, names: tuple[str, str], unit: str | None, value: object) -> None:
        own, full = names
        number = self._channel.get(own, self._channel.get(full))
        if number is None:
            if not (self._profile.ignores(own) or self._profile.ignores(full)):
                self._points.rejects.append(unknown_field(row, own or full))
            return
        if unit is not None and isinstance(value, float):
            converted = self._converted(number, unit, value)
            if converted is None:
                metric = self._profile.channels[number].metric
                known = ", ".join(self._units[number]) or "none"
                detail = f"field `{own or full}`: expected a unit out of {known}, got `{unit}`"
                self._refuse(row, metric, Reason.UNKNOWN_UNIT, detail)
                return
            value = converted
        self._points.add(row, time_us, number, value)

    def _converted(self, number: int, unit: str, value: float) -> float | None:
        """Return a value in the profile's unit of the device; None where the declared unit is none of the channel's."""
        channel = self._profile.channels[number]
        scale, offset = self._units[number].get(unit, (0.0, 0.0))
        if (scale, offset) == (channel.scale, channel.offset):
            return value
        return (value * scale + offset - channel.offset) / channel.scale if scale else None

    def _refuse(self, row: int, metric: str | None, reason: Reason, detail: str) -> None:
        self._points.rejects.append(Reject(row, metric, reason, detail))


def _value(entry: _Entry, base_value: float) -> object:
    if entry.v is not None:
        return base_value + entry.v
    if entry.vs is not None:
        return entry.vs
    if entry.vb is not None:
        return "true" if entry.vb else "false"
    return None if entry.vd is None else "binary data"


def _time_us(time_s: float, arrival_us: int) -> int | None:
    """Return UTC microseconds of a resolved SenML time."""
    if not np.isfinite(time_s) or abs(time_s) > _LATEST_S:
        return None
    return round(time_s * 1e6) + (arrival_us if time_s < RELATIVE_BELOW_S else 0)


def _refuse_unknown(pack: Any) -> None:
    """Refuse a pack with a label that ends in `_`: who does not know it must not read the pack (section 4.4).

    Raises:
        msgspec.DecodeError: it has one.
    """
    for entry in pack if isinstance(pack, list) else []:
        for label in entry if isinstance(entry, Mapping) else ():
            if isinstance(label, str) and label.endswith("_"):
                raise msgspec.DecodeError(f"the pack asks for the extension `{label}`, which is not known here")
