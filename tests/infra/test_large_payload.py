"""A device that sends far too much: accepted, kept in the stream whole, so that acquisition can quarantine it."""

import asyncio
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from fieldloop.stores import broker
from fieldloop.stores.settings import Settings
from infra.local.identities import enrol_devices

DEVICE = "talkative"
PAYLOAD = b"x" * (2 << 20)
WAIT_S = 30


def test_two_megabytes_over_mqtt_reach_the_stream(nats: Settings) -> None:
    """The device is acknowledged and not cut off, which would make it send the same again for ever."""
    enrol_devices(nats, [DEVICE])
    certificate = nats.certificate("device", DEVICE)
    acknowledged = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=DEVICE)
    client.tls_set(str(certificate.ca), str(certificate.cert), str(certificate.key))
    client.on_connect = lambda *_: client.publish(f"devices/{DEVICE}/readings", PAYLOAD, qos=1)
    client.on_publish = lambda *_: acknowledged.set()
    client.connect(nats.host, nats.mqtt_port)
    client.loop_start()
    try:
        assert acknowledged.wait(WAIT_S)
    finally:
        client.disconnect()
        client.loop_stop()
    assert asyncio.run(_last(nats)) == PAYLOAD


async def _last(settings: Settings) -> bytes | None:
    async with broker.platform(settings) as (_, streams):
        message = await streams.get_last_msg(broker.READINGS, f"devices.{DEVICE}.readings")
        return message.data
