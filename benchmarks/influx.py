"""InfluxDB 1.x as Debian has it, started for a moment in a temporary folder, to see how small it keeps readings."""

import contextlib
import gzip
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from infra.local.ports import free_ports

PROGRAM: Final = "influxd"
BATCH_LINES: Final = 20_000
START_S: Final = 30
SETTLE_S: Final = 150
STILL_S: Final = 12  # without a change on disk: no compaction is under way
CONFIG: Final = """
reporting-enabled = false
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  cache-snapshot-write-cold-duration = "2s"
  compact-full-write-cold-duration = "4s"
  query-log-enabled = false
[monitor]
  store-enabled = false
[http]
  bind-address = "127.0.0.1:{http}"
  log-enabled = false
"""


def installed() -> bool:
    """Say whether InfluxDB is on this machine."""
    return shutil.which(PROGRAM) is not None


def kept_bytes(readings: pl.DataFrame) -> int:
    """Return the bytes of the data files that InfluxDB has after its full compaction.

    Args:
        readings: columns device, metric, event_time, value; a field a metric, a tag for the device.

    Raises:
        TimeoutError: it did not start, or went on compacting.
    """
    with tempfile.TemporaryDirectory(prefix="fieldloop-influx-") as name, _running(Path(name)) as url:
        _request(f"{url}/query", {"q": "CREATE DATABASE bench WITH DURATION INF SHARD DURATION 520w"})
        lines = _lines(readings)
        for first in range(0, len(lines), BATCH_LINES):
            body = "\n".join(lines[first : first + BATCH_LINES]).encode()
            _request(f"{url}/write?db=bench&precision=s", body=gzip.compress(body, compresslevel=1))
        return _settled(Path(name))


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[str]:
    """Run it on free ports of the loopback interface; the address of its HTTP interface."""
    rpc, http = free_ports(2)
    config = folder / "influxdb.conf"
    config.write_text(CONFIG.format(folder=folder, rpc=rpc, http=http))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "run", "-config", str(config)], stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{http}", time.monotonic() + START_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{PROGRAM} did not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=START_S)


def _answers(url: str) -> bool:
    try:
        _request(f"{url}/ping")
    except OSError:
        return False
    return True


def _request(url: str, form: dict[str, str] | None = None, body: bytes | None = None) -> None:
    data = urllib.parse.urlencode(form).encode() if form else body
    headers = {"Content-Encoding": "gzip"} if body else {}
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - loopback
    urllib.request.urlopen(request, timeout=60).close()  # noqa: S310 - loopback


def _lines(readings: pl.DataFrame) -> list[str]:
    """Write line protocol: a line a device and second, with a field a metric, in the order of time."""
    rows = readings.with_columns(field=pl.format("{}={}", "metric", "value"), second=pl.col("event_time").dt.epoch("s"))
    grouped = rows.group_by("second", "device").agg(pl.col("field").str.join(",")).sort("second", "device")
    return grouped.select(pl.format("readings,device={} {} {}", "device", "field", "second")).to_series().to_list()


def _settled(folder: Path) -> int:
    """Wait until all is in data files and nothing changes any more; return their bytes."""
    deadline, since, before = time.monotonic() + SETTLE_S, time.monotonic(), (-1, -1)
    while time.monotonic() < deadline:
        now = _bytes(folder / "wal"), _bytes(folder / "data")
        if now != before:
            since, before = time.monotonic(), now
        if now[0] == 0 and time.monotonic() - since > STILL_S:
            return now[1]
        time.sleep(0.5)
    raise TimeoutError(f"{PROGRAM} went on for {SETTLE_S} s: {before[0]} bytes unwritten, {before[1]} in data files")


def _bytes(folder: Path) -> int:
    """Return the bytes of a folder's log segments and data files; those deleted meanwhile are nothing."""
    found = 0
    for path in (*folder.rglob("*.tsm"), *folder.rglob("*.wal")):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found
