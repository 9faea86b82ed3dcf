"""Simulated wind turbines: devices that replay the committed La Haute Borne data over MQTT 3.1.1, QoS 1.

They know a broker, a topic and their certificate, and nothing of the platform. Order of steps: read the records of a
span, write them as payloads of one hour each with the source's own digits, connect a client a device, publish in the
order of time behind a bounded window, wait for every acknowledgement, print a summary as one JSON line.
"""

import argparse
import json
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import polars as pl
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

DATA = Path(__file__).parents[2] / "data" / "la_haute_borne" / "la-haute-borne-data-2014-2015.csv.zst"
DEVICE_FIELD = "Wind_turbine_name"
TIME_FIELD = "Date_time"
RECORDS_A_MESSAGE = 6  # one hour of ten-minute records
WINDOW = 256  # messages a device may have unacknowledged
CONNECT_S = 15.0  # from the first attempt to the broker's consent
STALL_S = 60.0  # without any acknowledgement before giving up; a broker's restart fits in
KEEPALIVE_S = 30
RECONNECT_MAX_S = 2
PROGRESS_S = 1.0


class ReplayError(Exception):
    """The replay could not be finished; says what was acknowledged and what to look at."""


@dataclass(frozen=True)
class Broker:
    """Where to publish, and with which identity.

    Attributes:
        host: the MQTT listener's host.
        port: its TLS port.
        certificates: folder with `<device>/identity.pem`, certificate and key.
        authority: the CA that signed the broker's certificate.
    """

    host: str
    port: int
    certificates: Path
    authority: Path


@dataclass(frozen=True)
class Summary:
    """What a replay published, all of it acknowledged."""

    devices: int
    messages: int
    records: int
    readings: int
    seconds: float


def source(start: datetime, until: datetime) -> pl.DataFrame:
    """Return the source's records with event time in [start, until), in file order.

    Returns:
        the CSV's columns as text, exactly as written, with nulls for empty cells, and `event_time` (us, UTC).
    """
    if not DATA.is_file():
        raise ReplayError(f"data set not found: {DATA}; data/la_haute_borne/make.py makes it")
    event_time = pl.col(TIME_FIELD).str.to_datetime("%Y-%m-%dT%H:%M:%S%z", time_unit="us", time_zone="UTC")
    frame = pl.read_csv(DATA, infer_schema=False).with_columns(event_time=event_time)
    return frame.filter(pl.col("event_time").is_between(start, until, closed="left"))


def source_readings(start: datetime, until: datetime, devices: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the truth that a lake is compared with: the distinct readings of the source, the first one of a key.

    Args:
        start: first event time, with a time zone.
        until: end of event time, exclusive.
        devices: only these; None means all.

    Returns:
        columns device, field (the source's column), event_time (us, UTC), value (f64); one row a (device, field,
        event time) with a value.
    """
    frame = _of_devices(source(start, until), devices)
    return (
        frame.rename({DEVICE_FIELD: "device"})
        .unpivot(index=["device", "event_time"], on=_fields(frame), variable_name="field", value_name="value")
        .drop_nulls("value")
        .unique(["device", "field", "event_time"], keep="first", maintain_order=True)
        .select("device", "field", "event_time", pl.col("value").cast(pl.Float64))
    )


def payloads(devices: Sequence[str], start: datetime, until: datetime) -> pl.DataFrame:
    """Return the messages in the order of their first event time.

    Returns:
        columns device, payload (JSON array of up to six records, numbers with the source's own digits, null for an
        empty cell), records and readings (cells with a value) in it.
    """
    frame = _of_devices(source(start, until), devices)
    fields = _fields(frame)
    hour = pl.int_range(pl.len()).over(DEVICE_FIELD) // RECORDS_A_MESSAGE
    cells = pl.sum_horizontal(pl.col(field).is_not_null().cast(pl.Int64) for field in fields)
    return (
        frame.select(
            DEVICE_FIELD, "event_time", _record(fields).alias("record"), hour.alias("hour"), cells.alias("cells")
        )
        .group_by(DEVICE_FIELD, "hour", maintain_order=True)
        .agg(
            pl.col("record").str.join(","),
            pl.col("event_time").first(),
            pl.len().alias("records"),
            pl.col("cells").sum().alias("readings"),
        )
        .sort("event_time", DEVICE_FIELD, maintain_order=True)
        .select(
            pl.col(DEVICE_FIELD).alias("device"), pl.format("[{}]", "record").alias("payload"), "records", "readings"
        )
    )


def replay(broker: Broker, devices: Sequence[str], start: datetime, until: datetime, rate: float | None) -> Summary:
    """Publish a span's records as the named devices and wait until the broker has acknowledged every message.

    Args:
        broker: where, and with which certificates.
        devices: their names in the source.
        start: first event time.
        until: end of event time, exclusive.
        rate: records a second over all devices; None publishes as fast as the broker acknowledges.

    Raises:
        ReplayError: an unknown device, a refused or unreachable broker, or no acknowledgement for a minute.
    """
    messages = payloads(devices, start, until)
    began = time.monotonic()
    with Fleet(broker, devices) as fleet:
        _publish(fleet, messages, rate, began)
        fleet.finish(messages.height)
    return Summary(
        devices=len(devices),
        messages=messages.height,
        records=int(messages["records"].sum()),
        readings=int(messages["readings"].sum()),
        seconds=round(time.monotonic() - began, 3),
    )


class Fleet:
    """The devices' connections: a client and a thread each, reconnecting by itself with what is unacknowledged."""

    def __init__(self, broker: Broker, devices: Sequence[str]) -> None:
        """Prepare the clients; nothing connects before the context is entered."""
        self._broker = broker
        self._clients = {device: _client(broker, device) for device in devices}
        self._windows = {device: threading.Semaphore(WINDOW) for device in devices}
        self._lock = threading.Lock()
        self._acknowledged = 0
        self._last_acknowledged = time.monotonic()
        self._connected = {device: threading.Event() for device in devices}
        self._refusals: dict[str, str] = {}
        for device, client in self._clients.items():
            self._listen(device, client)

    def __enter__(self) -> Self:
        """Connect every device and wait for the broker's consent."""
        deadline = time.monotonic() + CONNECT_S
        try:
            for device in self._clients:
                self._connect(device, deadline)
            for device in self._clients:
                self._await_consent(device, deadline)
        except BaseException:
            self._close()
            raise
        self._last_acknowledged = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect every device."""
        self._close()

    @property
    def acknowledged(self) -> int:
        """Messages that the broker has taken charge of."""
        return self._acknowledged

    def publish(self, device: str, payload: str) -> None:
        """Queue one message of a device, waiting while its window is full.

        Raises:
            ReplayError: nothing was acknowledged for a minute, or the client's queue refused the message.
        """
        while not self._windows[device].acquire(timeout=PROGRESS_S):
            self._check_stall()
        sent = self._clients[device].publish(f"devices/{device}/readings", payload, qos=1)
        # NO_CONN: the client keeps the message and sends it after it has reconnected.
        if sent.rc not in (MQTTErrorCode.MQTT_ERR_SUCCESS, MQTTErrorCode.MQTT_ERR_NO_CONN):
            raise ReplayError(f"{device}: the client refused a message: {mqtt.error_string(sent.rc)}")

    def finish(self, messages: int) -> None:
        """Wait until that many messages are acknowledged.

        Raises:
            ReplayError: nothing was acknowledged for a minute.
        """
        for window in self._windows.values():
            for _ in range(WINDOW):
                while not window.acquire(timeout=PROGRESS_S):
                    self._check_stall()
        if self._acknowledged != messages:
            raise ReplayError(f"{messages} messages were published, {self._acknowledged} acknowledged")

    def _listen(self, device: str, client: mqtt.Client) -> None:
        """Attach the callbacks of one device."""

        def connected(_: mqtt.Client, __: Any, ___: mqtt.ConnectFlags, code: ReasonCode, ____: Any) -> None:
            if code.is_failure:
                self._refusals[device] = str(code)
            else:
                self._refusals.pop(device, None)
                self._connected[device].set()

        def disconnected(_: mqtt.Client, __: Any, ___: mqtt.DisconnectFlags, code: ReasonCode, ____: Any) -> None:
            self._refusals.setdefault(device, f"connection closed by the broker ({code})")

        def published(_: mqtt.Client, __: Any, ___: int, ____: ReasonCode, _____: Properties) -> None:
            with self._lock:
                self._acknowledged += 1
                self._last_acknowledged = time.monotonic()
            self._windows[device].release()

        client.on_connect = connected
        client.on_disconnect = disconnected
        client.on_publish = published

    def _connect(self, device: str, deadline: float) -> None:
        """Open one connection, trying again until the deadline, and start its thread."""
        client = self._clients[device]
        while True:
            try:
                client.connect(self._broker.host, self._broker.port, keepalive=KEEPALIVE_S)
                break
            except OSError as exc:
                if isinstance(exc, ssl.SSLError) or time.monotonic() > deadline:
                    where = f"{self._broker.host}:{self._broker.port}"
                    raise ReplayError(f"{device}: cannot connect to the broker at {where}: {exc}; is it up?") from exc
                time.sleep(0.1)
        client.loop_start()

    def _await_consent(self, device: str, deadline: float) -> None:
        """Wait for the broker's CONNACK."""
        while not self._connected[device].wait(0.05):
            if device in self._refusals or time.monotonic() > deadline:
                reason = self._refusals.get(device, f"no answer within {CONNECT_S:.0f} s")
                where = self._broker.certificates / device
                raise ReplayError(f"{device}: the broker refuses it: {reason}; is the certificate in {where} enrolled?")

    def _check_stall(self) -> None:
        """Give up once the broker has been silent for too long."""
        if time.monotonic() - self._last_acknowledged > STALL_S:
            reasons = (
                "; ".join(f"{device}: {reason}" for device, reason in sorted(self._refusals.items())) or "no error"
            )
            raise ReplayError(
                f"no acknowledgement for {STALL_S:.0f} s after {self._acknowledged} messages ({reasons}): "
                f"look at the broker at {self._broker.host}:{self._broker.port}"
            )

    def _close(self) -> None:
        """Disconnect and stop the threads."""
        for client in self._clients.values():
            client.disconnect()
            client.loop_stop()


def main() -> None:
    """Parse the command line and replay; exits non-zero with one line where something is missing."""
    options = _parser().parse_args()
    authority = options.ca or options.certificates.parent / "ca.pem"
    broker = Broker(options.host, options.port, options.certificates, authority)
    try:
        summary = replay(broker, options.devices, options.start, options.until, options.rate)
    except ReplayError as exc:
        sys.exit(f"turbines: {exc}")
    print(json.dumps(asdict(summary)), flush=True)


def _publish(fleet: Fleet, messages: pl.DataFrame, rate: float | None, began: float) -> None:
    """Publish in order, at the rate asked for, with a line of progress a second."""
    records = 0
    reported = began
    columns = (messages[name].to_list() for name in ("device", "payload", "records"))
    for device, payload, size in zip(*columns, strict=True):
        fleet.publish(device, payload)
        records += size
        now = time.monotonic()
        if rate is not None and (ahead := began + records / rate - now) > 0:
            time.sleep(ahead)
        if now - reported >= PROGRESS_S:
            reported = now
            done = f"{fleet.acknowledged:,} of {messages.height:,} messages acknowledged"
            print(f"{now - began:6.1f} s  {done}, {records / (now - began):,.0f} records/s", flush=True)


def _client(broker: Broker, device: str) -> mqtt.Client:
    """Return one device's client with its TLS identity."""
    folder = broker.certificates / device
    for file in (folder / "identity.pem", broker.authority):
        if not file.is_file():
            raise ReplayError(f"{device}: no file {file}; enrol the device first")
    context = ssl.create_default_context(cafile=str(broker.authority))
    context.load_cert_chain(folder / "identity.pem")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=device, protocol=mqtt.MQTTv311)
    client.tls_set_context(context)
    client.reconnect_delay_set(1, RECONNECT_MAX_S)
    client.max_inflight_messages_set(0)  # the window is ours: the client's own scans all that is in flight at each ack
    return client


def _record(fields: Sequence[str]) -> pl.Expr:
    """Return the expression that writes one record as a JSON object, in the CSV's column order."""
    texts = [pl.format(f'"{name}":"{{}}"', name) for name in (DEVICE_FIELD, TIME_FIELD)]
    numbers = [pl.format(f'"{name}":{{}}', pl.col(name).fill_null("null")) for name in fields]
    return pl.format("{{{}}}", pl.concat_str(texts + numbers, separator=","))


def _fields(frame: pl.DataFrame) -> list[str]:
    """Return the measured columns."""
    return [name for name in frame.columns if name not in (DEVICE_FIELD, TIME_FIELD, "event_time")]


def _of_devices(frame: pl.DataFrame, devices: Sequence[str] | None) -> pl.DataFrame:
    """Keep the named devices' rows."""
    if devices is None:
        return frame
    known = frame[DEVICE_FIELD].unique()
    if unknown := sorted(set(devices) - set(known)):
        raise ReplayError(f"no records of {', '.join(unknown)} in the span; there are {', '.join(sorted(known))}")
    return frame.filter(pl.col(DEVICE_FIELD).is_in(list(devices)))


def _parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="turbines", description="Replay La Haute Borne as simulated wind turbines.")
    parser.add_argument("--devices", required=True, type=lambda text: text.split(","), help="names, comma separated")
    parser.add_argument("--certificates", required=True, type=Path, help="folder of <device>/identity.pem")
    parser.add_argument("--ca", type=Path, help="the broker's CA; default ca.pem beside the certificates' folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8883)
    parser.add_argument("--from", dest="start", type=_moment, default="2014-01-01", help="first event time, UTC")
    parser.add_argument("--until", type=_moment, default="2016-01-01", help="end of event time, exclusive")
    parser.add_argument("--rate", type=float, help="records a second; default as fast as acknowledged")
    return parser


def _moment(text: str) -> datetime:
    """Read an ISO date or time; UTC where it names no zone."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    main()
