"""Real devices before the contract watch: how many of the wind farm and of Beijing's air stations it sets aside."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from backports import zstd
from pyarrow import csv

from expectations.changes import promises
from expectations.profiles import compile_profile, read_profile
from fieldloop.domain.contract.watch import Watch
from fieldloop.domain.harmonize import harmonize, harmonize_table
from fieldloop.domain.readings import Messages, Named
from fieldloop.stores.sources import columns
from infra.local.turbines import payloads
from tasks.rows import JUDGED_ROWS

ROOT: Final = Path(__file__).parents[1]
FARM: Final = ("R80711", "R80721", "R80736", "R80790")
FARM_BATCH: Final = 96  # messages: a day of the farm


def wind_farm() -> int:
    """Let the wind farm's two years pass live, day by day; return how many turbines are set aside."""
    document = read_profile(ROOT, "senvion-mm82")
    profile = compile_profile(document)
    watch = Watch(promises(document), profile.cadence_us)
    sent = payloads(FARM, datetime(2014, 1, 1, tzinfo=UTC), datetime(2016, 1, 1, tzinfo=UTC))
    devices, bodies = sent["device"].to_list(), [body.encode() for body in sent["payload"]]
    aside: set[str] = set()
    for begin in range(0, len(bodies), FARM_BATCH):
        rows = slice(begin, begin + FARM_BATCH)
        number = np.arange(begin + 1, begin + 1 + len(bodies[rows]))
        messages = Messages(Named.of(devices[rows]), np.full(len(number), 2**60), number, bodies[rows])
        readings, rejects = harmonize(profile, messages)
        arrival_us = np.zeros(len(number), dtype=np.int64)
        np.maximum.at(arrival_us, readings.message, readings.event_us + 2_000_000)
        arrival_us = np.maximum.accumulate(arrival_us)
        messages = Messages(messages.devices, arrival_us, number, messages.payloads)
        aside |= {finding.device for finding in watch.judge(messages, readings, rejects) if finding.certain}
    return len(aside)


def beijing() -> int | None:
    """Let the files of Beijing's stations pass as a source reads them; return how many stations are set aside."""
    sets = Path(os.environ.get("FIELDLOOP_DATASETS", ROOT.parent / "shared" / "data"))
    files = sorted(sets.glob("beijing_multisite_air/*.csv.zst"))
    if not files:
        return None
    document = read_profile(ROOT, "beijing-station")
    profile = compile_profile(document)
    watch = Watch(promises(document), profile.cadence_us)
    aside: set[str] = set()
    place = 1
    for path in files:
        rows = _station(path)
        for begin in range(0, rows.num_rows, JUDGED_ROWS):
            part = rows.slice(begin, JUDGED_ROWS)
            number = place + np.arange(part.num_rows)
            messages = Messages(Named.of(part["station"].to_pylist()), np.full(part.num_rows, 2**60), number, ())
            readings, rejects = harmonize_table(profile, messages, columns.to_table(profile, part, "station"))
            aside |= {finding.device for finding in watch.judge(messages, readings, rejects) if finding.certain}
            place += part.num_rows
    return len(aside)


def _station(path: Path) -> pa.Table:
    """Return a station's rows as texts, as they were published."""
    with zstd.open(path) as text:
        names = text.readline().decode().strip().replace('"', "").split(",")
        kinds = dict.fromkeys(names, pa.string())
        return csv.read_csv(
            text,
            csv.ReadOptions(column_names=names, use_threads=False),
            convert_options=csv.ConvertOptions(column_types=kinds),
        )
