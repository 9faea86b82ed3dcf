"""LoRaWAN uplinks as network servers send them, in the codecs that a profile may name."""

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import BinaryField, Clock, Uplink
from fieldloop.domain.readings import Reason
from tests.domain.payloads.samples import NOON, NOON_US, PROFILES, channel, messages, profile, uplink

FIELDS = (
    BinaryField("temp", 1, "int16", numerator=1, denominator=10, port=5),
    BinaryField("hum", 4, "uint8", port=5),
)
PROBE = profile(
    format="lorawan", clock=Clock("time", "iso"), uplink=Uplink("data", "base64", "fPort", "fields", FIELDS)
)
ELSYS = bytes.fromhex("01011d02400003c5")  # 28.5 degC, 64 %


def test_fields_at_fixed_places_are_read_to_the_decimal():
    """285 tenths are 28.5, not 28.500000000000004."""
    readings, rejects = harmonize(PROBE, messages(uplink(ELSYS)))
    assert not rejects
    assert readings.value.tolist() == [28.5, 64.0]
    assert readings.event_us.tolist() == [NOON_US, NOON_US]


def test_the_things_stack_puts_the_same_bytes_elsewhere():
    """Paths are the profile's; hex is read as well."""
    stack = msgspec.structs.replace(
        PROBE,
        device_field="end_device_ids.device_id",
        clock=Clock("received_at", "iso"),
        uplink=Uplink("uplink_message.frm_payload", "base64", "uplink_message.f_port", "fields", FIELDS),
    )
    frame = {
        "end_device_ids": {"device_id": "d1", "application_ids": {"application_id": "a"}},
        "received_at": "2015-01-01T12:00:00.123456789Z",
        "uplink_message": {"f_port": 5, "frm_payload": base64.b64encode(ELSYS).decode(), "rx_metadata": [{}]},
    }
    readings, rejects = harmonize(stack, messages(json.dumps(frame).encode()))
    assert not rejects
    assert readings.value.tolist() == [28.5, 64.0]
    hexed = msgspec.structs.replace(PROBE, uplink=Uplink("data", "hex", "fPort", "fields", FIELDS))
    readings, _ = harmonize(hexed, messages(uplink(b"", data=ELSYS.hex())))
    assert readings.value.tolist() == [28.5, 64.0]


def test_fields_of_another_port_are_not_looked_for():
    """A device sends other things on other ports."""
    readings, rejects = harmonize(PROBE, messages(uplink(b"\x01", fPort=3)))
    assert (len(readings), rejects) == (0, [])


def test_a_short_payload_costs_only_the_fields_that_it_lacks():
    """The others are read."""
    readings, rejects = harmonize(PROBE, messages(uplink(ELSYS[:4])))
    assert readings.value.tolist() == [28.5]
    assert [(r.metric, r.reason) for r in rejects] == [("humidity", Reason.UNDECODABLE)]


@pytest.mark.parametrize("data", [None, "", "%%%", "AQE", 7])
def test_a_frame_without_bytes_is_refused(data):
    """Status frames and broken base64."""
    readings, rejects = harmonize(PROBE, messages(uplink(b"", data=data), uplink(ELSYS)))
    assert readings.message.tolist() == [1, 1]
    assert {reject.message for reject in rejects} == {0}


@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "uint24", "int24", "uint32", "int32", "uint64", "int64"]),
    st.sampled_from(["big", "little"]),
    st.data(),
)
def test_integers_of_every_width_are_read_as_python_reads_them(kind, endian, data):
    """Signed and unsigned, in both byte orders."""
    size = int("".join(filter(str.isdigit, kind))) // 8
    raw = data.draw(st.binary(min_size=size, max_size=size))
    layout = Uplink("data", "base64", None, "fields", (BinaryField("temp", 1, kind, endian),))
    one = msgspec.structs.replace(PROBE, uplink=layout, channels=(channel("temperature", "temp"),))
    readings, _ = harmonize(one, messages(uplink(b"\x00" + raw)))
    assert readings.value.tolist() == [float(int.from_bytes(raw, endian, signed=kind[0] == "i"))]


def test_cayenne_values_are_named_by_type_and_channel():
    """Temperature, humidity, a position, and what no channel reads."""
    lpp = msgspec.structs.replace(
        PROFILES["cayenne"],
        channels=(
            channel("temperature", "temperature_1"),
            channel("latitude", "gps_3.latitude"),
            channel("altitude", "gps_3.altitude"),
        ),
        ignore=("gps_3.longitude",),
    )
    payload = bytes.fromhex("0167ffd7" + "0388" + "06765ff2960a0003e8" + "046601")
    readings, rejects = harmonize(lpp, messages(uplink(payload)))
    assert readings.value.tolist() == [-4.1, 42.3519, 10.0]
    assert [(r.metric, r.reason) for r in rejects] == [("presence_4", Reason.UNKNOWN_METRIC)]


@pytest.mark.parametrize("tail", ["01", "01ff00", "0167ff"])
def test_cayenne_is_read_up_to_where_it_goes_astray(tail):
    """A type that nobody knows has no known length, so nothing after it can be trusted."""
    readings, rejects = harmonize(PROFILES["cayenne"], messages(uplink(bytes.fromhex("01670064" + tail))))
    assert readings.value.tolist() == [10.0]
    assert [reject.reason for reject in rejects] == [Reason.UNDECODABLE]


def test_frames_that_the_server_decoded_are_plain_json():
    """No codec is needed, only paths, and silence about the rest of the frame."""
    decoded = profile(
        clock=Clock("time", "iso"), channels=(channel("temperature", "object.temperature"),), ignore=("*",)
    )
    frame = uplink(b"", object={"temperature": 21.5, "version": {"a": 1}}, deviceInfo={"devEui": "d1"})
    assert NOON.encode() in frame
    readings, rejects = harmonize(decoded, messages(frame))
    assert (readings.value.tolist(), rejects) == ([21.5], [])
