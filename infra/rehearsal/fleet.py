"""A process of simulated gateways: `python -m infra.rehearsal.fleet PATH` runs the fleet of a file until SIGTERM.

It writes one file when it hears orders and every gateway has reported once, and what became of each when it stops.
"""

import asyncio
import logging
import random
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from tuf.api.metadata import Signed

from fieldloop.domain.enrolment import NOTICE
from fieldloop.domain.rollout import Desired
from fieldloop.stores import broker, rollouts
from fieldloop.stores.settings import Settings
from infra.rehearsal.faults import Fate, Faults
from infra.rehearsal.gateway import Gateway, Life, download
from infra.rehearsal.link import Link, Traffic
from infra.rehearsal.models import Library, Runtime
from infra.rehearsal.trust import Trust

AT_ONCE: Final = 128  # gateways of one process that download at the same time


class Fleet(msgspec.Struct, frozen=True):
    """What a process of simulated gateways is told.

    Attributes:
        targets: labels by name.
        root: root metadata that every gateway trusts from the beginning.
        faults: as `Faults` in JSON.
        seed: of everything that is drawn.
        heartbeat_s: seconds between reports.
        windows_per_s: windows that each gateway scores.
        installed: digest of the release that they run at first; empty where none.
        manifest: its manifest's path in the repository.
        ready: file that is written when orders are heard.
        outcome: file that is written at the end.
    """

    targets: dict[str, tuple[str, ...]]
    root: bytes
    faults: msgspec.Raw
    seed: int
    heartbeat_s: float
    windows_per_s: float
    ready: str
    outcome: str
    installed: str = ""
    manifest: str = ""


class Fated(msgspec.Struct, frozen=True):
    """What became of one gateway: its fate, release and graph that really run there, and the payload that it received.

    `graph` is the SHA-256 of the graph: where a release has several, it tells which one came here.
    """

    fate: str
    running: str | None
    graph: str | None
    received_bytes: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of a process's gateways, and what went over the line."""

    gateways: dict[str, Fated]
    requests: int
    verified: int
    lost: int
    received_bytes: int
    sent_bytes: int


def main() -> None:
    """Run the fleet that the file on the command line describes."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns at every close of a TLS connection
    fleet = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Fleet)
    outcome = asyncio.run(_run(Settings(), fleet))
    Path(fleet.outcome).write_bytes(msgspec.json.encode(outcome))


async def _run(settings: Settings, fleet: Fleet) -> Outcome:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with broker.platform(settings) as (client, js):
        traffic, library, at_once = Traffic(), Library(), asyncio.Semaphore(AT_ONCE)
        faults = Faults.model_validate_json(bytes(fleet.faults))
        life, kept = Life(fleet.heartbeat_s, fleet.windows_per_s, faults.skew_s), dict[bytes, Signed]()
        gateways = {}
        for name, labels in fleet.targets.items():
            draw = random.Random(f"{fleet.seed}/{name}")  # noqa: S311 - a simulation
            fate, link = faults.fate(draw), Link(client, js, faults, draw, traffic)
            installed = await _installed(client, js, fleet, labels, library)
            gateways[name] = Gateway(name, fate, link, Trust(fleet.root, kept), library, draw, life, installed)

        async def notice(message: Msg) -> None:
            gateway = gateways.get(message.subject.rpartition(".")[2])
            if gateway is not None and message.data:
                gateway.ask(msgspec.json.decode(message.data, type=Desired), at_once)

        await client.subscribe(f"{NOTICE}.$KV.desired.*", cb=notice)
        for name, held in (await rollouts.held(js, gateways)).items():
            if held.desired:
                gateways[name].ask(held.desired, at_once)
        heard = [gateway for gateway in gateways.values() if gateway.fate is not Fate.SILENT]
        for start in range(0, len(heard), AT_ONCE):
            await asyncio.gather(*(gateway.report() for gateway in heard[start : start + AT_ONCE]))
        Path(fleet.ready).touch()
        beats = [asyncio.create_task(gateway.beat()) for gateway in gateways.values()]
        await stop.wait()
        for beat in beats:
            beat.cancel()
    return Outcome(
        {name: Fated(each.fate, each.running, each.graph, each.received_bytes) for name, each in gateways.items()},
        traffic.requests,
        traffic.verified,
        traffic.lost,
        traffic.received_bytes,
        traffic.sent_bytes,
    )


async def _installed(
    client: Client, js: JetStreamContext, fleet: Fleet, labels: tuple[str, ...], library: Library
) -> Runtime | None:
    """Return the release that a gateway runs at first; each graph of it is fetched once."""
    if not fleet.installed:
        return None
    if known := library.get(fleet.installed, labels):
        return known
    link = Link(client, js, Faults(), random.Random(fleet.seed), Traffic())  # noqa: S311 - a simulation
    desired = Desired(fleet.installed, fleet.manifest, 0, "at first", labels=labels)
    return library.load(await download(link.fetch, Trust(fleet.root, {}), desired))


if __name__ == "__main__":
    main()
