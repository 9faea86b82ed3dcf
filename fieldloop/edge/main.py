"""`fieldloop-agent --config PATH`: runs the agent of one edge target until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from fieldloop.domain.enrolment import decode_config
from fieldloop.domain.errors import FieldloopError
from fieldloop.edge.agent import Agent


def main() -> int:
    """Parse the command line and run; returns 2 where the configuration cannot be used."""
    parser = argparse.ArgumentParser(prog="fieldloop-agent", description="Run the agent of one edge target.")
    parser.add_argument("--config", type=Path, required=True, help="the agent.json written at enrolment")
    path: Path = parser.parse_args().config.resolve()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns at every close of a TLS connection
    try:
        config = decode_config(path.read_bytes(), str(path))
        asyncio.run(_run(Agent(config, path.parent)))
    except (FieldloopError, OSError) as exc:
        logging.getLogger(__name__).error("%s", exc)
        return 2
    return 0


async def _run(agent: Agent) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await agent.run(stop)


if __name__ == "__main__":
    sys.exit(main())
