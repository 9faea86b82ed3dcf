"""The local endpoint: what it answers about an agent that is well, idle, in trouble, or alone."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from fieldloop.domain.release import Proof
from fieldloop.domain.rollout import Reported, Running, Spool
from fieldloop.edge.health import Endpoint

IDLE = Reported("gw", 0, "1", spool=Spool(waiting=3, bytes=100, dropped=2))
WELL = msgspec.structs.replace(IDLE, running=Running("d" * 64, "toy", 7, Proof("h", True, 0.0, True)), scored=5)
TRIED = msgspec.structs.replace(IDLE, attempted="e" * 64)
TROUBLED = msgspec.structs.replace(WELL, attempted="e" * 64, error="canary: outputs differ")


def _ask(folder: Path, report: Reported, path: str, *, connected: bool = True) -> tuple[int, str]:
    """Open the endpoint, ask it, and close it; return status and body."""

    async def ask() -> bytes:
        endpoint = Endpoint(lambda: report, lambda: connected)
        await endpoint.open(0, folder / "health.port")
        reader, writer = await asyncio.open_connection("127.0.0.1", int((folder / "health.port").read_text()))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: gw\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        endpoint.close()
        return answer

    head, _, body = asyncio.run(ask()).decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


@pytest.mark.parametrize(
    ("report", "status", "reason"),
    [(IDLE, 200, None), (WELL, 200, None), (TRIED, 503, "no release runs"), (TROUBLED, 503, "canary: outputs differ")],
)
def test_health_is_503_where_what_is_asked_for_does_not_run(
    tmp_path: Path, report: Reported, status: int, reason: str | None
) -> None:
    """With the reason; an agent of which nothing was asked yet does its work, and so does one that is alone."""
    for connected in (True, False):
        got, body = _ask(tmp_path, report, "/health", connected=connected)
        known = json.loads(body)
        assert (got, known["well"], known["reason"]) == (status, status == 200, reason)
        assert (known["connected"], known["spooled"]) == (connected, 3)


@pytest.mark.parametrize(("report", "healthy"), [(IDLE, 0), (WELL, 1), (TRIED, 0), (TROUBLED, 0)])
def test_metrics_say_whether_a_release_runs_well_and_what_waits(tmp_path: Path, report: Reported, healthy: int) -> None:
    """Each with its help and type, as Prometheus reads them."""
    lines = _ask(tmp_path, report, "/metrics", connected=False)[1].splitlines()
    assert f"fieldloop_agent_healthy {healthy}" in lines
    assert "fieldloop_agent_connected 0" in lines
    assert {"fieldloop_agent_spool_waiting 3", "fieldloop_agent_spool_dropped_total 2"} <= set(lines)
    named = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    assert named == {line.split(" ")[2] for line in lines if line.startswith("# TYPE ")}
    assert ("fieldloop_agent_release_info" in named) == (report.running is not None)
