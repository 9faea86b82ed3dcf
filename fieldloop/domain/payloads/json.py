"""JSON payloads: an object a record, or an array of them, flat or nested.

The quick way decodes each message straight into structs made from the profile's field paths. A message that does not
fit is looked at again field by field, so that what is good in it is kept and what is not is named.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.clock import NOT_A_TIME, to_utc_us
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject


@dataclass(frozen=True)
class Records:
    """Decoded records, raw units.

    Attributes:
        message: [R] int64, row of the message.
        event_us: [R] int64, UTC microseconds.
        values: [R, C] float64 in the order of the profile's channels, NaN where a record has no value.
        rejects: what did not decode.
    """

    message: NDArray[np.int64]
    event_us: NDArray[np.int64]
    values: NDArray[np.float64]
    rejects: list[Reject]


@dataclass
class _Collected:
    """Record structs and the rows of their messages, as they are gathered."""

    rows: list[int] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """The struct of one record, and how to get at its parts."""

    record: type[msgspec.Struct]
    known: dict[str, type]  # field path to the JSON type it must have
    metric_of: dict[str, str]
    clock: Callable[[Any], Any]
    device: Callable[[Any], Any] | None
    channels: tuple[Callable[[Any], Any], ...]


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad message or field costs only itself."""
    layout = _layout(profile)
    collected = _collect(layout, messages)
    collected = _own_records(layout, collected, messages)
    return _columns(profile, layout, collected)


def _collect(layout: _Layout, messages: Messages) -> _Collected:
    decoder = msgspec.json.Decoder(layout.record | list[layout.record])  # type: ignore[name-defined]
    collected = _Collected()
    for row, payload in enumerate(messages.payloads):
        try:
            decoded = decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            _salvage(layout, row, payload, collected)
            continue
        records = decoded if isinstance(decoded, list) else [decoded]
        collected.records += records
        collected.rows += [row] * len(records)
    return collected


def _salvage(layout: _Layout, row: int, payload: bytes, collected: _Collected) -> None:
    """Keep the good fields of a message that does not fit its profile, and name the others."""
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        collected.rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected JSON: {error}"))
        return
    for entry in document if isinstance(document, list) else [document]:
        if not isinstance(entry, dict):
            detail = f"expected a record (a JSON object), got {_shown(entry)}"
            collected.rejects.append(Reject(row, None, Reason.WRONG_TYPE, detail))
            continue
        good = _good_fields(layout, row, entry, "", collected.rejects)
        collected.records.append(msgspec.convert(good, layout.record))
        collected.rows.append(row)


def _good_fields(layout: _Layout, row: int, entry: dict[str, Any], above: str, rejects: list[Reject]) -> dict[str, Any]:
    good: dict[str, Any] = {}
    for name, value in entry.items():
        path = above + name
        if isinstance(value, dict) and any(known.startswith(f"{path}.") for known in layout.known):
            good[name] = _good_fields(layout, row, value, f"{path}.", rejects)
        elif path not in layout.known:
            rejects.append(Reject(row, path, Reason.UNKNOWN_METRIC, f"no channel reads field `{path}`"))
        elif value is None or _fits(value, layout.known[path]):
            good[name] = value
        else:
            expected = "a number" if layout.known[path] is float else "text"
            detail = f"field `{path}`: expected {expected}, got {_shown(value)}"
            rejects.append(Reject(row, layout.metric_of.get(path, path), Reason.WRONG_TYPE, detail))
    return good


def _fits(value: object, expected: type) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, expected)


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _own_records(layout: _Layout, collected: _Collected, messages: Messages) -> _Collected:
    """Refuse records that name another device than the topic they came on."""
    if layout.device is None:
        return collected
    named = [layout.device(record) for record in collected.records]
    own = [messages.devices[row] for row in collected.rows]
    if named == own:
        return collected
    kept = _Collected(rejects=collected.rejects)
    for row, record, name, device in zip(collected.rows, collected.records, named, own, strict=True):
        if name is None or name == device:
            kept.rows.append(row)
            kept.records.append(record)
        else:
            detail = f"the record names device `{name}`, its topic belongs to `{device}`"
            kept.rejects.append(Reject(row, None, Reason.WRONG_DEVICE, detail))
    return kept


def _columns(profile: Profile, layout: _Layout, collected: _Collected) -> Records:
    records = collected.records
    rows = np.array(collected.rows, dtype=np.int64)
    raw_times: list[Any] = [layout.clock(record) for record in records]
    missing = "" if profile.clock.kind == "iso" else np.nan
    event_us = to_utc_us(profile.clock.kind, [missing if time is None else time for time in raw_times])
    values = np.empty((len(records), len(layout.channels)), dtype=np.float64)
    for column, channel in enumerate(layout.channels):
        values[:, column] = np.array([channel(record) for record in records], dtype=np.float64)  # None becomes NaN
    readable = event_us != NOT_A_TIME
    rejects = collected.rejects + [
        Reject(
            int(rows[index]),
            None,
            Reason.NO_EVENT_TIME,
            f"field `{profile.clock.field}`: expected {profile.clock.kind} time, got {_shown(raw_times[index])}",
        )
        for index in np.flatnonzero(~readable)
    ]
    return Records(rows[readable], event_us[readable], values[readable], rejects)


def _layout(profile: Profile) -> _Layout:
    known: dict[str, type] = {channel.field: float for channel in profile.channels}
    known[profile.clock.field] = str if profile.clock.kind == "iso" else float
    if profile.device_field is not None:
        known[profile.device_field] = str
    names = {part: f"f{index}" for index, part in enumerate(sorted({p for path in known for p in path.split(".")}))}

    def getter(path: str) -> Callable[[Any], Any]:
        return attrgetter(".".join(names[part] for part in path.split(".")))

    return _Layout(
        record=_struct(known, names, "Record"),
        known=known,
        metric_of={channel.field: channel.metric for channel in profile.channels},
        clock=getter(profile.clock.field),
        device=None if profile.device_field is None else getter(profile.device_field),
        channels=tuple(getter(channel.field) for channel in profile.channels),
    )


def _struct(paths: dict[str, type], names: dict[str, str], title: str) -> type[msgspec.Struct]:
    """Make the struct of a record; nested paths become nested structs, JSON names their encoded names."""
    branches: dict[str, dict[str, type]] = {}
    fields: list[tuple[str, Any, Any]] = []
    for path, kind in paths.items():
        head, _, rest = path.partition(".")
        if rest:
            branches.setdefault(head, {})[rest] = kind
        else:
            fields.append((names[head], kind | None, None))
    for head, below in branches.items():
        nested = _struct(below, names, f"{title}_{names[head]}")
        fields.append((names[head], nested, msgspec.field(default_factory=nested)))
    rename = {python: json for json, python in names.items()}
    return msgspec.defstruct(title, fields, rename=rename, forbid_unknown_fields=True, gc=False)
