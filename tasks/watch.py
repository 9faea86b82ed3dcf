"""Watch: how full the devices' stream is with what is not in the lake yet, and which devices have fallen silent.

The broker drops the oldest messages of a full stream, and MQTT devices are told nothing of it; so what counts is how
much of the limits is taken by messages that acquisition has not brought in. A device is silent when nothing of it has
arrived, neither readings nor refusals, for so many of its cadences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
import polars as pl
from prefect import task
from pydantic import Field

from expectations.profiles import load_profile
from fieldloop.domain.errors import DocumentError
from fieldloop.stores import broker, fleet
from fieldloop.stores.drain import Fill, fill
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.partitions import positions

KEY: Final = "watch/silent.msgpack"  # the devices that were silent at the last look
LEAST_SILENCE: Final = timedelta(minutes=5)  # for devices that send every second: connections break now and then

Cadences = Annotated[int, Field(ge=2, le=10_000)]
FillShare = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Silence:
    """A device of which nothing has come for longer than is allowed.

    Attributes:
        device: its name.
        last: when something of it arrived last; None where nothing ever did.
        allowed: how long it may be silent.
        new: whether it was not silent at the last look.
    """

    device: str
    last: datetime | None
    allowed: timedelta
    new: bool


@dataclass(frozen=True)
class Watched:
    """What a look found: how full the stream is, whether that is too full, and who is silent."""

    fill: Fill
    filling: bool
    silent: tuple[Silence, ...]


@task(name="look at stream and devices", retries=2, retry_delay_seconds=5, timeout_seconds=300)
def look(cadences: int, share: float) -> Watched:
    """Look at the stream's fill level and at the devices' silence."""
    return watch(Settings(), cadences, share, datetime.now(UTC))


def watch(settings: Settings, cadences: int, share: float, now: datetime) -> Watched:
    """Look at stream and devices, and remember who is silent.

    Args:
        settings: where the services are.
        cadences: a device may be silent for so many of its profile's cadences, and five minutes at least.
        share: the stream is filling when what is not in the lake takes so much of a limit.
        now: the moment of the look, UTC.

    Raises:
        StoreError: broker or lake cannot be reached.
    """
    lake = Lake(settings)
    level = fill(settings, broker.READINGS, min(positions(lake).values()), now)
    before = _silent_before(lake)
    silent = [
        Silence(device, last, allowed, device not in before)
        for device, (last, allowed) in _last_arrivals(lake, _allowed(settings, lake, cadences), now).items()
        if last is None or now - last > allowed
    ]
    lake.put(KEY, msgspec.msgpack.encode(sorted(each.device for each in silent)))
    return Watched(level, max(level.bytes_share, level.age_share) >= share, tuple(silent))


def _allowed(settings: Settings, lake: Lake, cadences: int) -> Mapping[str, timedelta]:
    """Return how long each device may be silent; those without a usable profile are not watched."""
    allowed: dict[str, timedelta] = {}
    of_profile: dict[str, timedelta | None] = {}
    for device, name in fleet.devices(lake).items():
        if name not in of_profile:
            try:
                cadence = timedelta(microseconds=load_profile(settings.root, name).cadence_us)
                of_profile[name] = max(cadences * cadence, LEAST_SILENCE)
            except DocumentError:
                of_profile[name] = None
        if (limit := of_profile[name]) is not None:
            allowed[device] = limit
    return allowed


def _last_arrivals(
    lake: Lake, allowed: Mapping[str, timedelta], now: datetime
) -> dict[str, tuple[datetime | None, timedelta]]:
    """Return when something of each device arrived last; only of those long silent is all history asked."""
    if not allowed:
        return {}
    recent = _arrivals(lake, pl.col("arrival_time") >= now - max(allowed.values()))
    missing = allowed.keys() - recent.keys()
    older = _arrivals(lake, pl.col("device").is_in(sorted(missing))) if missing else {}
    return {device: (recent.get(device) or older.get(device), limit) for device, limit in allowed.items()}


def _arrivals(lake: Lake, which: pl.Expr) -> dict[str, datetime]:
    tables = [lake.scan(table).filter(which).select("device", "arrival_time") for table in ("readings", "quarantine")]
    latest = pl.concat(tables).group_by("device").agg(pl.col("arrival_time").max()).collect()
    return dict(latest.iter_rows())


def _silent_before(lake: Lake) -> frozenset[str]:
    data = lake.get(KEY)
    return frozenset(msgspec.msgpack.decode(data, type=list[str]) if data is not None else ())


def rows(watched: Watched) -> list[dict[str, str]]:
    """Return the look as rows of a table artifact."""
    level = watched.fill
    stream = {
        "what": "stream `readings`",
        "state": "filling" if watched.filling else "good",
        "since": f"{level.oldest:%Y-%m-%d %H:%M} UTC" if level.oldest else "–",
        "detail": f"{level.messages:,} messages not in the lake yet, {level.bytes_share:.1%} of its bytes, "
        f"oldest at {level.age_share:.1%} of its age",
    }
    return [stream, *_silent_rows(watched.silent)]


def _silent_rows(silent: Sequence[Silence]) -> list[dict[str, str]]:
    return [
        {
            "what": f"device `{each.device}`",
            "state": "silent",
            "since": f"{each.last:%Y-%m-%d %H:%M} UTC" if each.last else "never heard of",
            "detail": f"may be silent for {each.allowed}",
        }
        for each in silent
    ]
