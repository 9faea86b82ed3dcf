"""LoRaWAN uplinks as network servers send them: JSON around the device's own bytes, which a codec reads.

Where those bytes are, and which codec reads them, the profile says; so ChirpStack, The Things Stack and others all fit.
Uplinks that the server has decoded already are plain JSON with field paths. A channel's field is a name of the codec's.
"""

import base64
import binascii
from collections.abc import Callable
from dataclasses import replace

from fieldloop.domain.columns import Column
from fieldloop.domain.payloads import binary, cayenne, fields
from fieldloop.domain.payloads.json import clock_kinds
from fieldloop.domain.payloads.records import Records, Table, clock_fields, shown, to_records
from fieldloop.domain.profile import Profile, Uplink
from fieldloop.domain.readings import Messages, Reason, Reject

_BYTES: dict[str, Callable[[str], bytes]] = {
    "base64": lambda text: base64.b64decode(text, validate=True),
    "hex": bytes.fromhex,
}


def decode(profile: Profile, messages: Messages) -> Records:
    """Decode messages of devices of one profile; one bad message or field costs only itself."""
    uplink = profile.uplink or Uplink("data", "base64", None, "cayenne-lpp")
    layout = _envelope(profile, uplink)
    found = layout.find(messages)
    payloads = _payloads(uplink, found, layout.column(found, uplink.payload))
    ports: list[float | None] = layout.column(found, uplink.port) if uplink.port else [None] * len(payloads)
    read = binary.read if uplink.codec == "fields" else cayenne.read
    columns, faults = read(profile, payloads, ports)
    refused = [replace(fault, message=found.rows[fault.message]) for fault in faults]
    absent: Column = [None] * len(payloads)
    table = Table(
        rows=found.rows,
        clock=tuple(layout.column(found, name) for name in clock_fields(profile)),
        device=None if profile.device_field is None else layout.column(found, profile.device_field),
        channels=tuple(columns.get(channel.field, absent) for channel in profile.channels),
        rejects=found.rejects + refused,
    )
    return to_records(profile, messages, table)


def _envelope(profile: Profile, uplink: Uplink) -> fields.Fields:
    """Return what is read of the server's JSON; all else in it is passed over."""
    kinds = {uplink.payload: fields.TEXT, **clock_kinds(profile)}
    if uplink.port is not None:
        kinds[uplink.port] = fields.NUMBER
    if profile.device_field is not None:
        kinds[profile.device_field] = fields.TEXT
    return fields.Fields(kinds, ("*",), {})


def _payloads(uplink: Uplink, found: fields.Found, texts: list[str | None]) -> list[bytes]:
    """Return the device's bytes of each uplink; name those that are not there, and read them as empty."""
    to_bytes = _BYTES[uplink.encoding]
    payloads: list[bytes] = []
    for row, text in zip(found.rows, texts, strict=True):
        try:
            payloads.append(to_bytes(text or ""))
        except (binascii.Error, ValueError):
            payloads.append(b"")
            text = text or ""
        if not payloads[-1]:
            detail = f"field `{uplink.payload}`: expected {uplink.encoding} bytes, got {shown(text)}"
            found.rejects.append(Reject(row, None, Reason.UNDECODABLE, detail))
    return payloads
