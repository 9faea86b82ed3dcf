"""`fieldloop-agent`: `enrol` once, then run the agent of one edge target until SIGTERM or SIGINT."""

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
from fieldloop.domain.errors import EnrolmentError, FieldloopError

if TYPE_CHECKING:
    from fieldloop.edge.agent import Agent

ABOUT = """\
Run the agent of one edge target: fetch the release that the platform asks for, prove it,
score the readings of the target's devices, publish predictions and alerts, report."""

MORE = """\
First `fieldloop-agent enrol --folder DIR`, with the token that `fieldloop target add` printed on
the platform; it asks for the token, or reads it from standard input:

  fieldloop target add gw-1 --device pump-1 | ssh gw-1 fieldloop-agent enrol --folder DIR

The private key is made there and stays there. Then `fieldloop-agent --config DIR/agent.json`,
which renews its certificate by itself. In agent.json, relative paths are relative to DIR. Worth
knowing there:

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
    parser.add_argument("--config", type=Path, help="the agent.json written at enrolment")
    commands = parser.add_subparsers(dest="command", metavar="enrol | renew", help="instead of running")
    enrolling = commands.add_parser("enrol", help="use a token: make a key, get its certificate, write the folder")
    enrolling.add_argument("--folder", type=Path, required=True, help="for identity, authority and agent.json")
    renewing = commands.add_parser("renew", help="get the next certificate now; a running agent does it by itself")
    renewing.add_argument("--config", type=Path, required=True, help="the agent.json written at enrolment")
    asked = parser.parse_args()
    if asked.command is None and asked.config is None:
        parser.error("the following arguments are required: --config")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns at every close of a TLS connection
    try:
        if asked.command is None:
            _serve(asked.config.resolve())
        else:
            _join(asked)
    except (FieldloopError, OSError) as exc:
        if asked.command is None:
            logging.getLogger(__name__).error("%s", exc)
        else:
            print(f"fieldloop-agent: {exc}", file=sys.stderr)
        return 2
    return 0


def _serve(path: Path) -> None:
    """Run the agent."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy reads it when it is imported, below
    try:
        config = decode_config(path.read_bytes(), str(path))
    except OSError as exc:
        raise EnrolmentError(f"{exc}: `fieldloop-agent enrol --folder {path.parent}` writes it") from exc
    from fieldloop.edge.agent import Agent
    from fieldloop.edge.memory import one_heap

    one_heap()
    asyncio.run(_run(lambda: Agent(config, path)))


def _join(asked: argparse.Namespace) -> None:
    """Enrol or renew, in a process that loads what agents do without."""
    from fieldloop.edge import enrol

    logging.disable(logging.WARNING)  # the error says it all
    if asked.command == "enrol":
        enrol.run_enrol(asked.folder)
    else:
        asyncio.run(enrol.renew(asked.config.resolve()))


async def _run(make: "Callable[[], Agent]") -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await make().run(stop)


if __name__ == "__main__":
    sys.exit(main())
