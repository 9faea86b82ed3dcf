"""How devices stand: which are set aside, since when and why; of a device the newest row of table `standing` counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import polars as pl

from fieldloop.stores.lake import Lake
from fieldloop.stores.tables import SCHEMAS

TABLE: Final = "standing"


class State(StrEnum):
    """Where a device stands."""

    SUSPENDED = "suspended"
    READMITTED = "readmitted"


class By(StrEnum):
    """Who decided it."""

    WATCH = "contract watch"
    OPERATOR = "operator"
    PROFILE = "mended profile"


@dataclass(frozen=True)
class Standing:
    """How one device stands.

    Attributes:
        device: its name.
        state: set aside, or readmitted after that.
        metric: the metric that shows a change; None where it is not a metric's.
        change: what a person should suspect.
        since: stream sequence of the first message that shows it, of a source's row when it was read (microseconds);
            0 where a person decided.
        profile: fingerprint of the device's profile then.
        by: who decided it.
        anew: whether the watch is to learn the device anew.
        at: when, UTC.
        turn: how many such decisions there were of this device, this one included.
    """

    device: str
    state: State
    metric: str | None
    change: str
    since: int
    profile: str
    by: By
    anew: bool
    at: datetime
    turn: int

    @property
    def suspended(self) -> bool:
        """Whether it is set aside."""
        return self.state == State.SUSPENDED

    def why(self) -> str:
        """Return the reason as people read it."""
        return f"{self.metric}: {self.change}" if self.metric else self.change


def standings(lake: Lake) -> dict[str, Standing]:
    """Return how each device stands that was ever set aside, by name."""
    return {standing.device: standing for standing in _read(lake.scan(TABLE))}


def decisions(lake: Lake, device: str) -> list[Standing]:
    """Return all that was decided about a device, oldest first."""
    return _read(lake.scan(TABLE).filter(pl.col("device") == device))


def _read(rows: pl.LazyFrame) -> list[Standing]:
    turn = pl.int_range(1, pl.len() + 1).over("device").alias("turn")
    ordered = rows.sort("at", maintain_order=True).with_columns(turn).collect()
    return [
        Standing(**{**row, "state": State(row["state"]), "by": By(row["by"])}) for row in ordered.iter_rows(named=True)
    ]


def suspend(lake: Lake, entries: Sequence[Mapping[str, object]], by: By) -> None:
    """Set devices aside.

    Args:
        lake: where to write it.
        entries: device, metric, change, since and profile of each, see `Standing`.
        by: who decided it.
    """
    _enter(lake, [{**entry, "anew": False} for entry in entries], State.SUSPENDED, by)


def readmit(lake: Lake, devices: Mapping[str, str], by: By, *, anew: bool) -> None:
    """Readmit devices.

    Args:
        lake: where to write it.
        devices: the fingerprint of each one's profile by name.
        by: who decided it.
        anew: whether the watch is to learn them anew, because what they send now is right.
    """
    plain = {"metric": None, "change": "", "since": 0, "anew": anew}
    entries = [{**plain, "device": device, "profile": profile} for device, profile in devices.items()]
    _enter(lake, entries, State.READMITTED, by)


def _enter(lake: Lake, entries: Sequence[Mapping[str, object]], state: State, by: By) -> None:
    if entries:
        rows = [{**entry, "state": state, "by": by, "at": datetime.now(UTC)} for entry in entries]
        lake.append(TABLE, pl.DataFrame(rows, schema=SCHEMAS[TABLE]))
