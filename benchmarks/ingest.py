"""Messages a second from the broker into committed rows of the lake, exactly once, acknowledged after the commit.

`single` messages carry one reading, `batched` ones a hundred. A process of its own drains each, as a worker's run does;
the clock begins once that process has imported what it needs and read the profile. Peers, in the same run: the same
stream read with nats-py and decoded a row at a time, without any storage; and the limit, the stream read off the socket
and thrown away.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from benchmarks.figure import Figure
from benchmarks.plant import BEGIN_MS, DEVICES, data_plane, publish, worker
from expectations.profiles import load_profile
from fieldloop.stores import broker, drain
from fieldloop.stores.lake import Lake
from fieldloop.stores.pull import Pulled, Puller
from fieldloop.stores.settings import Settings
from tasks.acquire import Acquired, acquire

SINGLE_MESSAGES: Final = 1_500_000
BATCHED_MESSAGES: Final = 160_000
BATCHED_READINGS: Final = 100  # a message
PEER_MESSAGES: Final = 60_000  # of single readings, for nats-py


def measure() -> Figure:
    """Drain both kinds of message from a fresh broker into a fresh lake."""
    further: dict[str, Any] = {}
    with data_plane() as settings:
        asyncio.run(publish(settings, _messages(SINGLE_MESSAGES, 1, BEGIN_MS)))
        further["socket_limit_single"] = round(SINGLE_MESSAGES / _raw(settings, 0))
        further["nats_py_single"] = round(PEER_MESSAGES / asyncio.run(_row_wise(settings, 0, PEER_MESSAGES)))
        further["single"] = round(SINGLE_MESSAGES / _ingest(settings, SINGLE_MESSAGES))
        after = SINGLE_MESSAGES
        later_ms = BEGIN_MS + 10 * SINGLE_MESSAGES * 1000
        readings = BATCHED_MESSAGES * BATCHED_READINGS
        asyncio.run(publish(settings, _messages(BATCHED_MESSAGES, BATCHED_READINGS, later_ms)))
        further["socket_limit_batched"] = round(readings / _raw(settings, after))
        part = BATCHED_MESSAGES // 8
        seconds = asyncio.run(_row_wise(settings, after, part))
        further["nats_py_batched"] = round(part * BATCHED_READINGS / seconds)
        further["batched"] = round(readings / _ingest(settings, readings))
    return Figure(
        figure=further["single"],
        unit="messages/s",
        peer="nats-py, decoded a row at a time, nothing stored",
        ratio=round(further["single"] / further["nats_py_single"], 2),
        further=further,
    )


def _messages(messages: int, readings: int, first_ms: int) -> Iterator[tuple[str, bytes]]:
    """Yield what the devices send; each has a reading a second."""
    values = np.random.default_rng(7).integers(0, 400, messages * readings) / 10
    for number in range(messages):
        turn, device = divmod(number, DEVICES)
        begin = first_ms + turn * readings * 1000
        records = [{"t": begin + 1000 * place, "c": values[number * readings + place]} for place in range(readings)]
        yield f"devices.dev-{device:04}.readings", json.dumps(records[0] if readings == 1 else records).encode()


def _ingest(settings: Settings, readings: int) -> float:
    """Acquire what is new; return the seconds it took, and check that every reading is there once."""
    with worker() as process:
        process.submit(load_profile, settings.root, "bench").result()
        acquired, seconds = process.submit(_timed, settings).result()
    assert (acquired.readings, acquired.duplicates, acquired.quarantined) == (readings, 0, 0), acquired
    stored = Lake(settings).scan("readings").filter(pl.col("event_time") >= acquired.first)
    assert stored.select(pl.struct("device", "metric", "event_time").n_unique()).collect().item() == readings
    return seconds


def _timed(settings: Settings) -> tuple[Acquired, float]:
    began = time.perf_counter()
    acquired = acquire(settings)
    return acquired, time.perf_counter() - began


def _raw(settings: Settings, after: int) -> float:
    """Read the stream off the socket; return the seconds it took."""

    async def add() -> int:
        async with broker.platform(settings) as (_, js):
            return await drain.add_consumer(js, broker.READINGS, "raw", after)

    pending = asyncio.run(add())
    with Puller(settings.nats_endpoint, settings.certificate("platform", "platform"), "readings", "raw") as puller:
        began = time.perf_counter()
        while pending:
            pulled = Pulled()
            puller.read(pulled, pending, drain.PULL_WAIT_S)
            pending -= len(pulled.payloads)
        return time.perf_counter() - began


async def _row_wise(settings: Settings, after: int, messages: int) -> float:
    """Read with nats-py, a thousand a pull, and decode record by record; return the seconds it took."""
    rows: list[tuple[str, str, datetime, float]] = []
    read = 0
    async with broker.platform(settings) as (_, js):
        start = ConsumerConfig(durable_name="peer", ack_policy=AckPolicy.ALL, max_ack_pending=-1,
                               deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)  # fmt: skip
        await js.add_consumer(broker.READINGS, start)
        subscription = await js.pull_subscribe_bind("peer", broker.READINGS)
        began = time.perf_counter()
        while read < messages:
            batch = await subscription.fetch(min(1000, messages - read), timeout=5)
            for message in batch:
                decoded = json.loads(message.data)
                device = message.subject.split(".")[1]
                for record in decoded if isinstance(decoded, list) else [decoded]:
                    moment = datetime.fromtimestamp(record["t"] / 1000, tz=UTC)
                    rows.append((device, "temperature", moment, record["c"]))
            read += len(batch)
            await batch[-1].ack_sync()
        seconds = time.perf_counter() - began
        await js.delete_consumer(broker.READINGS, "peer")
    assert len(rows) >= messages
    return seconds
