"""The one way into the formats: unpack, then decode as the profile says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from fieldloop.domain.payloads import compression, csv, json, lorawan, scalar, senml, sparkplug
from fieldloop.domain.payloads.records import Records
from fieldloop.domain.profile import PayloadFormat, Profile
from fieldloop.domain.readings import Messages

DECODERS: Mapping[PayloadFormat, Callable[[Profile, Messages], Records]] = MappingProxyType(
    {
        "json": json.decode,
        "csv": csv.decode,
        "scalar": scalar.decode,
        "senml-json": senml.decode_json,
        "senml-cbor": senml.decode_cbor,
        "sparkplug-b": sparkplug.decode,
        "lorawan": lorawan.decode,
    }
)


def decode(profile: Profile, messages: Messages) -> Records:
    """Return the records of messages from devices of one profile; one bad message costs only itself."""
    if profile.compression == "none":
        return DECODERS[profile.format](profile, messages)
    payloads, unpacked, refused = compression.unpack(profile.compression, messages.payloads)
    rows = np.array(unpacked, dtype=np.int64)
    records = DECODERS[profile.format](profile, replace(messages.take(rows), payloads=payloads))
    rejects = refused + [reject.at(int(rows[reject.message])) for reject in records.rejects]
    return replace(records, message=rows[records.message], rejects=rejects)
