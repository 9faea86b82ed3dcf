"""One profile a format, and payloads that devices of it would send."""

import base64
import json
from collections.abc import Callable, Sequence

import cbor2
import msgspec
import numpy as np

from fieldloop.domain.payloads.sparkplug import message_type
from fieldloop.domain.profile import BinaryField, Channel, Clock, CsvLayout, Profile, Uplink
from fieldloop.domain.readings import Messages

NOON_US = 1_420_113_600_000_000  # 2015-01-01T12:00:00Z
NOON = "2015-01-01T12:00:00Z"
EPOCH_S = Clock("t", "epoch_s")
PAYLOAD_TIME = Clock("", "payload")


def channel(metric: str, field: str, **changes: object) -> Channel:
    """A channel that changes no unit and takes nearly every number."""
    plain = Channel(metric, field, "", 1.0, 0.0, -1e300, 1e300, "mean")
    return msgspec.structs.replace(plain, **changes)


def profile(**changes: object) -> Profile:
    """A JSON profile with one or another thing changed."""
    channels = (channel("temperature", "temp"), channel("humidity", "hum"))
    plain = Profile("probe", "json", None, EPOCH_S, 600_000_000, 60_000_000, channels)
    return msgspec.structs.replace(plain, **changes)


PROFILES = {
    "json": profile(),
    "csv": profile(format="csv", csv=CsvLayout(("t", "temp", "hum"))),
    "scalar": profile(format="scalar", clock=Clock("", "arrival"), channels=(channel("temperature", "value"),)),
    "senml-json": profile(format="senml-json", clock=PAYLOAD_TIME),
    "senml-cbor": profile(format="senml-cbor", clock=PAYLOAD_TIME),
    "sparkplug-b": profile(format="sparkplug-b", clock=PAYLOAD_TIME, aliases=((2, "hum"),)),
    "lorawan": profile(
        format="lorawan",
        clock=Clock("time", "iso"),
        uplink=Uplink(
            "data",
            "base64",
            "fPort",
            "fields",
            (BinaryField("temp", 0, "float64"), BinaryField("hum", 8, "float64", "little")),
        ),
    ),
    "cayenne": profile(
        format="lorawan",
        clock=Clock("time", "iso"),
        channels=(channel("temperature", "temperature_1"), channel("humidity", "relative_humidity_2")),
        uplink=Uplink("data", "base64", None, "cayenne-lpp"),
    ),
}
"""Each takes `payloads`' temperature and humidity; the last speaks Cayenne LPP."""


def messages(*payloads: bytes, device: str = "d1", arrival_us: int = NOON_US) -> Messages:
    """Messages of one device that all arrive at one time."""
    count = len(payloads)
    return Messages([device] * count, np.full(count, arrival_us), np.arange(1, count + 1), list(payloads))


def uplink(payload: bytes, **changes: object) -> bytes:
    """What ChirpStack makes of a device's bytes."""
    frame = {"time": NOON, "fPort": 5, "data": base64.b64encode(payload).decode(), "rxInfo": [{"rssi": -111}]}
    return json.dumps(frame | changes).encode()


def sparkplug(*metrics: dict[str, object], timestamp: int | None = NOON_US // 1000) -> bytes:
    """A Sparkplug B payload."""
    payload = message_type()(metrics=list(metrics))
    if timestamp is not None:
        payload.timestamp = timestamp
    return bytes(payload.SerializeToString())


def _cayenne(temp: float, hum: float) -> bytes:
    return uplink(
        b"\x01\x67" + round(temp * 10).to_bytes(2, "big", signed=True) + b"\x02\x68" + bytes([round(hum * 2)])
    )


SENDERS: dict[str, Callable[[float, float], bytes]] = {
    "json": lambda temp, hum: json.dumps({"t": NOON_US // 1_000_000, "temp": temp, "hum": hum}).encode(),
    "csv": lambda temp, hum: f"{NOON_US // 1_000_000},{temp!r},{hum!r}\n".encode(),
    "scalar": lambda temp, _hum: repr(temp).encode(),
    "senml-json": lambda temp, hum: json.dumps([{"n": "temp", "v": temp}, {"n": "hum", "v": hum}]).encode(),
    "senml-cbor": lambda temp, hum: cbor2.dumps([{0: "temp", 2: temp}, {0: "hum", 2: hum}]),
    "sparkplug-b": lambda temp, hum: sparkplug(
        {"name": "temp", "datatype": 10, "double_value": temp}, {"alias": 2, "datatype": 10, "double_value": hum}
    ),
    "lorawan": lambda temp, hum: uplink(np.array([temp], ">f8").tobytes() + np.array([hum], "<f8").tobytes()),
    "cayenne": _cayenne,
}
"""A device of each profile, saying temperature and humidity at noon."""


def values(sent: Sequence[tuple[float, float]], name: str) -> list[float]:
    """The values that should come of them, in order."""
    return [value for pair in sent for value in (pair[:1] if name == "scalar" else pair)]
