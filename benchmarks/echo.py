"""Stands where an agent stands and does none of its work: what comes is answered with predictions at once.

`python -m benchmarks.echo AGENT_JSON`. What its answers take is the share of broker, sender and machine in an agent's
latency: the same connection, the same pull, a message of the same length.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import gateway
from fieldloop.domain import predictions
from fieldloop.domain.enrolment import AgentConfig, decode_config
from fieldloop.edge import link as nats
from fieldloop.edge.feed import Delivery, Feed, Position
from fieldloop.edge.renewal import client_context

RELEASE = "0" * 64


class _Record(msgspec.Struct):
    t: int


def main() -> None:
    """Answer until SIGTERM."""
    path = Path(sys.argv[1])
    asyncio.run(_echo(decode_config(path.read_bytes(), str(path)), path.parent))


async def _echo(config: AgentConfig, folder: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tls = client_context(folder / config.identity, folder / config.ca)
    link = await nats.connect(config.broker, config.target, nats.own_inbox(config.target), tls)
    feed, position = Feed(link, config.target, config.redelivery_s), Position()
    while not stop.is_set():
        batch = await feed.take(position, 0.5)
        if batch is None:
            continue
        link.ask(f"predictions.{config.target}", _predictions(config.target, batch.fresh), lambda _: None)
        link.send_now()
        feed.acknowledge(batch.reply)
        position = batch.position


def _predictions(target: str, deliveries: Sequence[Delivery]) -> bytes:
    """Return a prediction for the window that each message completes."""
    ends = [(msgspec.json.decode(each.payload, type=_Record).t - gateway.STEP_MS) * 1000 for each in deliveries]
    values, digests = np.zeros(len(ends), dtype=np.float32), np.zeros(len(ends), dtype=np.uint64)
    devices = [(each.device, 1) for each in deliveries]
    return predictions.pack(target, RELEASE, devices, np.array(ends), values, digests)


if __name__ == "__main__":
    main()
