"""What devices' messages leave behind for the reading of their later ones: table `carried`, by place in the stream.

Rows are appended before the readings of the same batch. A batch that comes again looks up what was left behind before
each of its messages, so rows of a run that was killed in between do no harm.
"""

from collections.abc import Collection
from typing import Final

import msgspec
import polars as pl

from fieldloop.domain.carry import Carried, Carry
from fieldloop.domain.errors import StoreError
from fieldloop.stores.lake import Lake
from fieldloop.stores.tables import SCHEMAS

TABLE: Final = "carried"


def from_position(lake: Lake, position: int) -> Carry:
    """Return what devices had left behind at a position of the stream, and what came behind it."""
    rows = lake.scan(TABLE)
    past = rows.filter(pl.col("sequence") <= position).sort("sequence").group_by("device").last()
    return Carry(_entries(pl.concat([past.select(*SCHEMAS[TABLE]), rows.filter(pl.col("sequence") > position)])))


def whole(lake: Lake) -> Carry:
    """Return all that devices ever left behind, for messages that come again out of quarantine."""
    return Carry(_entries(lake.scan(TABLE)), later=True)


def keep(lake: Lake, entries: Collection[tuple[str, int, Carried]]) -> None:
    """Keep what messages have left behind (device, sequence, what); when this returns, it is there."""
    if entries:
        rows = [(device, sequence, msgspec.msgpack.encode(carried)) for device, sequence, carried in entries]
        lake.append(TABLE, pl.DataFrame(rows, schema=SCHEMAS[TABLE], orient="row"))


def _entries(rows: pl.LazyFrame) -> list[tuple[str, int, Carried]]:
    try:
        return [
            (device, sequence, msgspec.msgpack.decode(state, type=Carried))
            for device, sequence, state in rows.collect().iter_rows()
        ]
    except msgspec.MsgspecError as exc:
        raise StoreError(f"a row of table `{TABLE}` is not what acquisition wrote: {exc}") from exc
