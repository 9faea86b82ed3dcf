"""Declared sources in a folder of a test's own, on the real lake."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings

DEADLINE_S = 60
PROFILE = """
name: meter
description: A made-up meter.
format: FORMAT
clock: {kind: iso, field: at, zone: UTC}
cadence: 1 min
missing: [NA]
ignore: [note, meter]
channels:
  - {metric: level, field: level, source_unit: m, unit: m, range: [0, 10000]}
  - metric: state
    field: state
    source_unit: dimensionless
    unit: dimensionless
    range: [0, 1]
    values: {"on": 1, "off": 0}
"""


class Workshop(Settings):
    """The platform's settings, with profiles and sources from a folder of the test's own."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with `expectations`."""
        return self.folder

    def profile(self, text: str = PROFILE, format_: str = "csv") -> None:
        """Write the profile `meter`."""
        self._write("profiles", "meter", text.replace("FORMAT", format_))

    def source(self, name: str, text: str) -> str:
        """Write a declaration and return its name."""
        self._write("sources", name, f"name: {name}\nprofile: meter\n{text}")
        return name

    def stored(self, device: str) -> pl.DataFrame:
        """Return a device's readings in the lake."""
        rows = Lake(self).scan("readings").filter(pl.col("device") == device)
        return rows.sort("event_time", "metric").collect()

    def refused(self, source: str) -> pl.DataFrame:
        """Return what waits in quarantine of a source."""
        rows = Lake(self).scan("quarantine").filter(pl.col("subject").str.starts_with(f"sources/{source}/"))
        return rows.sort("subject", "sequence", "reason").collect()

    def _write(self, room: str, name: str, text: str) -> None:
        path = self.folder / "expectations" / room / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def workshop(settings: Settings, folder: Path) -> Workshop:
    """Return settings whose declarations are in a folder."""
    made = Workshop.model_validate({**settings.model_dump(), "folder": folder})
    made.profile()
    return made


def kill_while_collecting(settings: Workshop, name: str, before: str = "", commits: int = 1) -> None:
    """Run a source in a process of its own and kill it with -9 once so many commits of `readings` are there."""
    code = (
        "import sys; from pathlib import Path; from tests.tasks.sources import Workshop; from tasks import collect; "
        f"{before}; collect.collect(Workshop(folder=Path(sys.argv[1])), {name!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(settings.folder)],
        env={**os.environ, **settings.environment(), "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    lake = Lake(settings)
    wanted = (lake.version("readings") if lake.version("readings") is not None else -1) + commits
    deadline = time.monotonic() + DEADLINE_S
    while (lake.version("readings") or 0) < wanted:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
