"""`fieldloop-agent --config PATH`: runs the agent of one edge target until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.errors import FieldloopError

if TYPE_CHECKING:
    from fieldloop.edge.agent import Agent

ABOUT = """\
Run the agent of one edge target: fetch the release that the platform asks for, prove it,
score the readings of the target's devices, publish predictions and alerts, report."""

MORE = """\
The folder of agent.json is written by `fieldloop target add` on the platform; copy it to the
gateway as it is, with its modes: it holds the target's private key. In agent.json, relative
paths are relative to that folder. Worth knowing there:

  readings              a broker on this gateway, {"url": "mqtt://127.0.0.1:1883"} or nats://,
                        so that scoring goes on without the platform; MQTT needs fieldloop[mqtt]
  download_bytes_per_s  how fast releases may come; without it as fast as they can
  spool_bytes           what may wait on disk while the platform is away (64 MB)
  health_port           GET /health and /metrics on 127.0.0.1; 0 takes a free port, which is
                        written to <state>/health.port

SIGTERM stops it cleanly; it may be killed at any time and goes on where it was. It logs to
standard error. Exit code 2: agent.json is unusable.
infra/systemd/fieldloop-agent@.service runs it as a service."""


def main() -> int:
    """Parse the command line and run; returns 2 where the configuration cannot be used."""
    parser = argparse.ArgumentParser(
        prog="fieldloop-agent", description=ABOUT, epilog=MORE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="the agent.json written at enrolment")
    path: Path = parser.parse_args().config.resolve()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns at every close of a TLS connection
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported, below
    try:
        config = decode_config(path.read_bytes(), str(path))
        from fieldloop.edge.agent import Agent
        from fieldloop.edge.memory import one_heap

        one_heap()
        asyncio.run(_run(lambda: Agent(config, path.parent)))
    except (FieldloopError, OSError) as exc:
        logging.getLogger(__name__).error("%s", exc)
        return 2
    return 0


async def _run(make: "Callable[[], Agent]") -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await make().run(stop)


if __name__ == "__main__":
    sys.exit(main())
