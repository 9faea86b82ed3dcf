"""Sparkplug B payloads (Eclipse Sparkplug 3.0, section 6.4): metrics with names, or aliases that stand for them.

A metric with both a name and an alias, as births have them, gives the alias its name for the device's later messages;
the profile may name aliases of devices whose births never come. A channel's field is a metric's name. A metric's own
time goes before the payload's; where there is neither, the arrival counts. Booleans take the meaning that the channel
gives to `true` and `false`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec

from fieldloop.domain.carry import Carry
from fieldloop.domain.payloads.records import Points, Records, to_records, unknown_field
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Reason, Reject

_SIGNED_BITS = {1: 8, 2: 16, 3: 32, 4: 64}  # data types Int8 to Int64: sent in unsigned fields, two's complement
_US_PER_MS = 1_000
MOST_ALIASES = 10_000  # of a device; a birth beyond them gives no names
_LATEST_MS = 253_402_300_800_000  # the year 10000
# Number, name and type of the fields that we read; types as in google.protobuf.FieldDescriptorProto.
_UINT64, _UINT32, _STRING, _BOOL, _FLOAT, _DOUBLE, _BYTES, _MESSAGE = 4, 13, 9, 8, 2, 1, 12, 11
_METRIC = (
    (1, "name", _STRING),
    (2, "alias", _UINT64),
    (3, "timestamp", _UINT64),
    (4, "datatype", _UINT32),
    (7, "is_null", _BOOL),
)
_VALUE = (
    (10, "int_value", _UINT32),
    (11, "long_value", _UINT64),
    (12, "float_value", _FLOAT),
    (13, "double_value", _DOUBLE),
    (14, "boolean_value", _BOOL),
    (15, "string_value", _STRING),
    (16, "bytes_value", _BYTES),
    (17, "dataset_value", _BYTES),
    (18, "template_value", _BYTES),
)


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad message or metric costs only itself."""
    from google.protobuf.message import DecodeError

    points = Points(len(profile.channels))
    reader = _Reader(profile, points, messages.carry)
    payload_type = message_type()
    for row, raw in enumerate(messages.payloads):
        try:
            payload = payload_type.FromString(raw)
        except DecodeError as error:
            points.rejects.append(Reject(row, None, Reason.UNDECODABLE, f"expected a Sparkplug B payload: {error}"))
            continue
        if not payload.metrics and not payload.HasField("timestamp"):
            detail = "expected a Sparkplug B payload, got one with neither metrics nor a timestamp"
            points.rejects.append(Reject(row, None, Reason.UNDECODABLE, detail))
        reader.begin(messages.devices[row], int(messages.sequence[row]))
        reader.read(row, int(messages.arrival_us[row]), payload)
    return to_records(profile, messages, points.table())


@cache
def message_type() -> Any:
    """Return the class of a payload, with the part of Sparkplug's schema that telemetry needs."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="fieldloop/sparkplug_b.proto", package="fieldloop.sparkplug")
    payload, metric = file.message_type.add(name="Payload"), file.message_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    for number, name, kind in _METRIC:
        metric.field.add(name=name, number=number, type=kind, label=1)
    for number, name, kind in _VALUE:
        metric.field.add(name=name, number=number, type=kind, label=1, oneof_index=0)
    payload.field.add(name="timestamp", number=1, type=_UINT64, label=1)
    payload.field.add(name="metrics", number=2, type=_MESSAGE, label=3, type_name=".fieldloop.sparkplug.Metric")
    payload.field.add(name="seq", number=3, type=_UINT64, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("fieldloop.sparkplug.Payload"))


class _Reader:
    """Reads the metrics of payloads, one payload after another."""

    def __init__(self, profile: Profile, points: Points, carry: Carry) -> None:
        self._profile = profile
        self._points = points
        self._carry = carry
        self._channel = {channel.field: number for number, channel in enumerate(profile.channels)}
        self._given = dict(profile.aliases)
        self._alias: Mapping[int, str] = {}

    def begin(self, device: str, sequence: int) -> None:
        """Take up what the device's earlier messages have left behind."""
        self._device, self._sequence = device, sequence
        self._carried = self._carry.before(device, sequence)
        self._alias = self._given | dict(self._carried.aliases)

    def read(self, row: int, arrival_us: int, payload: Any) -> None:
        """Add the values of one payload."""
        common_ms = payload.timestamp if payload.HasField("timestamp") else None
        self._learn(
            {metric.alias: metric.name for metric in payload.metrics if metric.name and metric.HasField("alias")}
        )
        for metric in payload.metrics:
            name = metric.name or self._alias.get(metric.alias, "")
            number = self._channel.get(name)
            if number is None:
                self._unknown(row, metric, name)
                continue
            time_ms = metric.timestamp if metric.HasField("timestamp") else common_ms
            if time_ms is not None and time_ms >= _LATEST_MS:
                detail = f"metric `{name}`: expected milliseconds before the year 10000, got {time_ms}"
                self._points.rejects.append(Reject(row, None, Reason.NO_EVENT_TIME, detail))
                continue
            value = None if metric.is_null else _value(metric)
            if value is not None:
                time_us = arrival_us if time_ms is None else time_ms * _US_PER_MS
                self._points.add(row, time_us, number, value)

    def _learn(self, named: Mapping[int, str]) -> None:
        """Keep the names that a message gives, where they are new."""
        aliases = {**self._carried.aliases, **named}
        if aliases != self._carried.aliases and len(aliases) <= MOST_ALIASES:
            carried = msgspec.structs.replace(self._carried, aliases=aliases)
            self._carry.learn(self._device, self._sequence, carried)
            self._alias = self._given | aliases

    def _unknown(self, row: int, metric: Any, name: str) -> None:
        if name and not self._profile.ignores(name):
            self._points.rejects.append(unknown_field(row, name))
        elif not name:
            detail = (
                f"alias {metric.alias} has no name yet: no birth (NBIRTH, DBIRTH) with it came before; replay once one "
                "has come (the device sends one when asked to be reborn), or name it under `aliases` in the profile"
            )
            self._points.rejects.append(Reject(row, f"alias {metric.alias}", Reason.NO_BIRTH, detail))


def _value(metric: Any) -> object:
    kind = metric.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(metric, kind)
    if kind == "boolean_value":
        return "true" if value else "false"
    if isinstance(value, bytes):
        return f"{kind.removesuffix('_value')} of {len(value)} bytes"
    bits = _SIGNED_BITS.get(metric.datatype)
    if bits is not None and isinstance(value, int):
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value
    return value
