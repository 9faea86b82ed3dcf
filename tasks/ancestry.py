"""Ancestry: of which readings, of which devices, a recipe's windows were made; kept in table `examples` for lineage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from fieldloop.stores.history import known_at
from fieldloop.stores.lake import WRITES, Commit, Lake
from fieldloop.stores.tables import SCHEMAS
from tasks.examples import Versions
from tasks.labels import Noted

TABLE = "examples"


@dataclass(frozen=True)
class Past:
    """A past moment that grid and windows are made as of: nothing that happened later is in them.

    Attributes:
        moment: with a time zone.
        late: whether what happened before it and arrived after it is in them all the same.
    """

    moment: datetime
    late: bool

    def readings(self, lake: Lake) -> pl.Expr:
        """Return what holds for the rows of table `readings` that count.

        Raises:
            StoreError: the moment has no time zone, or the lake cannot be reached.
        """
        happened = pl.col("event_time") <= self.moment
        return happened if self.late else happened & known_at(lake, self.moment)

    @property
    def metadata(self) -> dict[str, str]:
        """What the tables' commits say of it."""
        return {"as_of": self.moment.astimezone(UTC).isoformat(), "late": "in" if self.late else "out"}


@dataclass(frozen=True)
class Validated:
    """How far a device's readings are validated, and by which run.

    Attributes:
        sequence: position in the stream.
        replay: replay out of quarantine.
        run_id: of the validation.
    """

    sequence: int
    replay: int
    run_id: str


@dataclass(frozen=True)
class Ancestry:
    """What a version of grid and windows was made of.

    Attributes:
        recipe: its name.
        readings: version of table `readings`.
        profiles: name of each device's profile.
        validated: how far each device was validated.
        past: the moment that they were made as of, if any.
        noted: the labels that targets were told by.
    """

    recipe: str
    readings: int
    profiles: Mapping[str, str]
    validated: Mapping[str, Validated]
    past: Past | None
    noted: Noted


def newest_whole(commits: Sequence[Commit]) -> int | None:
    """Return the newest version of a grid or of windows, of these commits, that was not made as of a past moment."""
    whole = (each.version for each in commits if each.operation in WRITES and "as_of" not in each.metadata)
    return next(whole, None)


def enter(lake: Lake, of: Ancestry, versions: Versions) -> None:
    """Enter what tables were made of, a row a device; once for a version of the windows.

    Raises:
        StoreError: the lake cannot be reached.
    """
    transaction = (f"windows/{of.recipe}@{versions.windows}", 1)
    if lake.transaction(TABLE, transaction[0]):
        return
    index = lake.scan(f"windows/{of.recipe}", versions.windows).group_by("device")
    spans = index.agg(windows=pl.len(), first_time=pl.col("end_time").min(), last_time=pl.col("end_time").max())
    devices = sorted(of.profiles)
    known = pl.LazyFrame(
        {
            "device": devices,
            "profile": [of.profiles[device] for device in devices],
            "validation": [of.validated[device].run_id for device in devices],
            "last_sequence": [of.validated[device].sequence for device in devices],
            "last_replay": [of.validated[device].replay for device in devices],
        },
        schema_overrides={name: SCHEMAS[TABLE][name] for name in ("validation", "last_sequence", "last_replay")},
    )
    rows = known.join(spans, on="device", how="left").with_columns(
        pl.col("windows").fill_null(0),
        recipe=pl.lit(of.recipe),
        grid_version=versions.grid,
        windows_version=versions.windows,
        readings_version=of.readings,
        as_of=None if of.past is None else pl.lit(of.past.moment),
        late=None if of.past is None else pl.lit(of.past.late),
        labels=pl.lit(of.noted.source or None),
        labels_sha256=pl.lit(of.noted.digest or None),
        made_at=pl.lit(datetime.now(UTC)),
    )
    lake.append(
        TABLE, rows.select(pl.col(name).cast(kind) for name, kind in SCHEMAS[TABLE].items()).collect(), transaction
    )
