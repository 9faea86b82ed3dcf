"""History: the readings as they were known at a moment in the past.

A reading is known from when it arrived: at the broker, or when a source was read. One that acquisition refused and a
replay brought later keeps the arrival of its message, but is known from its replay on: table `replays` has when each
began. Late readings are known from their arrival, however old their event time is; since a reading is stored once
and never changed, nothing else is needed, and a vacuum takes nothing away.
"""

from datetime import UTC, datetime
from typing import Final

import polars as pl

from fieldloop.domain.errors import StoreError
from fieldloop.stores.lake import Lake
from fieldloop.stores.tables import SCHEMAS

REPLAYS: Final = "replays"


def readings_as_of(lake: Lake, moment: datetime) -> pl.LazyFrame:
    """Return the rows of table `readings` that were known at a moment.

    For instance the temperatures of last Monday as a run on that day could see them, late ones left out::

        monday = datetime(2026, 3, 2, 12, tzinfo=UTC)
        readings_as_of(Lake(Settings()), monday).filter(pl.col("metric") == "temperature").collect()

    The time between an arrival and its commit, some seconds while acquisition runs, counts as known.

    Args:
        lake: whose readings.
        moment: with a time zone; what arrived just then is in.

    Raises:
        StoreError: the moment has no time zone, or the lake cannot be reached.
    """
    known = known_at(lake, moment)  # before the readings: a replay that comes in between is later than the moment
    return lake.scan("readings").filter(known)


def known_at(lake: Lake, moment: datetime) -> pl.Expr:
    """Return what holds for the rows of table `readings`, of any version, that were known at a moment.

    Raises:
        StoreError: as `readings_as_of`.
    """
    if moment.utcoffset() is None:
        raise StoreError(f"expected a moment with a time zone, got {moment}: say `tzinfo=UTC`, or which zone is meant")
    later = lake.scan(REPLAYS).group_by("replay").agg(pl.col("began_at").max()).collect()
    unknown = later.filter(pl.col("began_at") > moment)["replay"].to_list()
    return (pl.col("arrival_time") <= moment) & ~pl.col("replay").is_in(unknown)


def enter_replay(lake: Lake, number: int) -> None:
    """Enter that a replay begins now, before it commits; one that was killed is entered again under its number.

    Raises:
        StoreError: the lake cannot be reached.
    """
    lake.append(REPLAYS, pl.DataFrame({"replay": [number], "began_at": [datetime.now(UTC)]}, schema=SCHEMAS[REPLAYS]))
