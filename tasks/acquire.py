"""Acquire: drain a stream of the broker into its table, exactly once.

A batch is decoded whole, then committed together with the stream's last sequence as an application transaction, then
acknowledged. A crash in between replays the batch, and the sequence tells what the table already has.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prefect import task
from pydantic import Field

from expectations.profiles import load_profile
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Readings, Reason, Reject
from fieldloop.stores import broker, fleet
from fieldloop.stores.lake import SCHEMAS, Lake, Snapshot
from fieldloop.stores.settings import Settings

APPLICATION = "acquire/readings"  # of the application transactions; its version is a stream sequence
CONSUMER = "lake"
KEY = ("device", "metric", "event_time")
STORED = ("device", "event_time", "metric")  # what a message brought stays together: smallest, see compaction

QuietSeconds = Annotated[float, Field(ge=0, le=600)]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acquired:
    """What one run brought in.

    Attributes:
        messages: messages read.
        readings: rows that are new in table `readings`.
        duplicates: readings dropped because their (device, metric, event time) was there already.
        quarantined: rows that went to table `quarantine`.
        last_sequence: stream sequence up to which the table holds everything.
        devices: how many devices sent new readings.
        first: earliest event time among the new readings; None where there are none.
        last: latest event time among them.
        table_version: version of `readings` afterwards; None where there is no table yet.
    """

    messages: int
    readings: int
    duplicates: int
    quarantined: int
    last_sequence: int
    devices: int
    first: datetime | None
    last: datetime | None
    table_version: int | None


@task(name="drain readings", retries=3, retry_delay_seconds=5, timeout_seconds=3600, tags=["broker", "lake"])
def drain_readings(quiet_s: float) -> Acquired:
    """Drain stream `readings` into the lake."""
    return acquire(Settings(), quiet_s)


def acquire(settings: Settings, quiet_s: float = 0) -> Acquired:
    """Drain stream `readings` into the tables `readings` and `quarantine`.

    Args:
        settings: where the services are.
        quiet_s: go on until no message has come for so many seconds; 0 stops at what was there at the start.

    Raises:
        StoreError: broker or lake cannot be reached, or another writer committed at the same time.
    """
    lake = Lake(settings)
    after = lake.transaction("readings", APPLICATION)
    committer = _Committer(lake, Decoder(lake, settings.root))
    drained = broker.drain(settings, broker.READINGS, CONSUMER, after, committer.prepare, committer.commit, quiet_s)
    return Acquired(
        messages=drained.messages,
        readings=committer.readings,
        duplicates=committer.duplicates,
        quarantined=committer.quarantined,
        last_sequence=drained.last_sequence,
        devices=len(committer.seen),
        first=committer.first,
        last=committer.last,
        table_version=lake.version("readings"),
    )


@dataclass
class _Committer:
    """Commits batches one after another and keeps the run's figures."""

    lake: Lake
    decoder: "Decoder"
    readings: int = 0
    duplicates: int = 0
    quarantined: int = 0
    seen: set[str] = field(default_factory=set)
    first: datetime | None = None
    last: datetime | None = None

    def prepare(self, messages: Messages, subjects: Sequence[str]) -> "_Decoded":
        """Decode one batch."""
        return _Decoded(messages, subjects, *self.decoder.decode(messages))

    def commit(self, decoded: "_Decoded") -> None:
        """Bring one batch into the lake; when this returns, it is there."""
        messages, rows, rejects = decoded.messages, decoded.rows, decoded.rejects
        transaction = (APPLICATION, int(messages.sequence[-1]))
        self.quarantined += quarantine(self.lake, messages, decoded.subjects, rejects, APPLICATION)
        snapshot = self.lake.snapshot("readings")
        fresh = new_readings(snapshot, rows)
        figures = {
            "messages": len(messages.payloads),
            "duplicates": len(rows) - len(fresh),
            "quarantined": len(rejects),
        }
        version = self.lake.append("readings", fresh, transaction, figures, snapshot)
        self._count(fresh, figures)
        logger.info(
            "readings version %s: %s rows from %s messages, %s duplicates, %s quarantined",
            version,
            len(fresh),
            figures["messages"],
            figures["duplicates"],
            figures["quarantined"],
        )

    def _count(self, fresh: pl.DataFrame, figures: Mapping[str, int]) -> None:
        self.readings += len(fresh)
        self.duplicates += figures["duplicates"]
        self.seen |= set(fresh["device"].unique())
        if len(fresh):
            first, last = fresh.select(pl.col("event_time").min(), last=pl.col("event_time").max()).row(0)
            self.first = min(first, self.first or first)
            self.last = max(last, self.last or last)


@dataclass(frozen=True)
class _Decoded:
    """A batch of messages, the rows of table `readings` in them, and what was refused."""

    messages: Messages
    subjects: Sequence[str]
    rows: pl.DataFrame
    rejects: list[Reject]


class Decoder:
    """Harmonizes messages of all devices of the fleet, by their profiles as they are now."""

    def __init__(self, lake: Lake, root: Path) -> None:
        """Remember where fleet and profiles are."""
        self._lake = lake
        self._root = root
        self._profile_names: dict[str, str] = {}
        self._profiles: dict[str, Profile | DocumentError] = {}

    def decode(self, messages: Messages, replay: int = 0) -> tuple[pl.DataFrame, list[Reject]]:
        """Return a batch as rows of table `readings`, and everything that was refused.

        Args:
            messages: in order of arrival.
            replay: the replay that brings them; 0 for messages as they come.
        """
        names = self._names(set(messages.devices))
        rejects: list[Reject] = []
        frames = [pl.DataFrame(schema=SCHEMAS["readings"])]
        by_profile: dict[str | None, list[int]] = {}
        for row, device in enumerate(messages.devices):
            by_profile.setdefault(names.get(device), []).append(row)
        for name, rows in by_profile.items():
            profile = self._profile(name)
            if isinstance(profile, Profile):
                chosen = np.array(rows, dtype=np.int64)
                part = messages.take(chosen)
                readings, refused = harmonize(profile, part)
                frames.append(_frame(profile, part, readings, replay))
                rejects += [Reject(rows[r.message], r.metric, r.reason, r.detail) for r in refused]
            else:
                rejects += [
                    Reject(row, None, Reason.UNKNOWN_DEVICE, f"device `{messages.devices[row]}`: {profile}")
                    for row in rows
                ]
        return pl.concat(frames), rejects

    def _names(self, devices: set[str]) -> Mapping[str, str]:
        """Return the devices' profile names; asks the fleet again when one is not known yet."""
        if not devices <= self._profile_names.keys():
            self._profile_names = fleet.devices(self._lake)
        return self._profile_names

    def _profile(self, name: str | None) -> Profile | DocumentError:
        if name is None:
            return DocumentError("not enrolled; add it with `fieldloop device add`, then replay")
        if name not in self._profiles:
            try:
                self._profiles[name] = load_profile(self._root, name)
            except DocumentError as exc:
                self._profiles[name] = exc
        return self._profiles[name]


def new_readings(snapshot: Snapshot, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the first of each (device, metric, event time) that the table does not have yet, sorted for storage."""
    unique = _distinct(rows)
    if len(unique):
        first, last = unique.select(pl.col("event_time").min(), last=pl.col("event_time").max()).row(0)
        span = pl.col("event_time").is_between(first, last) & pl.col("year").is_between(first.year, last.year)
        stored = snapshot.scan().filter(span, pl.col("device").is_in(unique["device"].unique().implode()))
        unique = unique.join(stored.select(KEY).collect(), on=KEY, how="anti", maintain_order="left")
    return unique


def _distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the first of each (device, metric, event time), sorted for storage.

    Equal keys are neighbours once sorted; names are sorted as numbers, in a quarter of the time.
    """
    names = ("device", "metric")
    ordered = rows.with_columns(pl.col(name).cast(pl.Enum(rows[name].unique().sort())) for name in names).sort(
        STORED, maintain_order=True
    )
    repeated = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift()) for name in KEY)
    return ordered.filter(~repeated).with_columns(pl.col(names).cast(pl.String))


def _frame(profile: Profile, messages: Messages, readings: Readings, replay: int) -> pl.DataFrame:
    """Give readings their device, arrival and position: columns of table `readings`."""
    event_time = times(readings.event_us)
    return pl.DataFrame(
        {
            "device": pl.Series(messages.devices, dtype=pl.String).gather(readings.message),
            "metric": pl.Series(profile.metrics(), dtype=pl.String).gather(readings.metric.astype(np.int64)),
            "event_time": event_time,
            "arrival_time": times(messages.arrival_us[readings.message]),
            "value": readings.value,
            "sequence": messages.sequence[readings.message],
            "replay": np.full(len(readings), replay),
            "year": event_time.dt.year(),
        },
        schema=SCHEMAS["readings"],
    )


def quarantine(
    lake: Lake, messages: Messages, subjects: Sequence[str], rejects: Sequence[Reject], application: str
) -> int:
    """Keep what a batch refused, with its raw bytes and the reason; return how many rows are new.

    The batch's last sequence is the application transaction, so a batch that is replayed adds nothing.
    """
    done = lake.transaction("quarantine", application)
    fresh = [reject for reject in rejects if messages.sequence[reject.message] > done]
    if not fresh:
        return 0
    lake.append(
        "quarantine",
        refused(messages, subjects, fresh),
        (application, int(messages.sequence[-1])),
    )
    return len(fresh)


def refused(messages: Messages, subjects: Sequence[str], rejects: Sequence[Reject], replay: int = 0) -> pl.DataFrame:
    """Return rejects as rows of table `quarantine`."""
    row = np.array([reject.message for reject in rejects], dtype=np.int64)
    return pl.DataFrame(
        {
            "device": [messages.devices[r] for r in row],
            "metric": [reject.metric for reject in rejects],
            "reason": [str(reject.reason) for reject in rejects],
            "detail": [reject.detail for reject in rejects],
            "subject": [subjects[r] for r in row],
            "arrival_time": times(messages.arrival_us[row]),
            "sequence": messages.sequence[row],
            "replay": np.full(len(row), replay),
            "payload": [messages.payloads[r] for r in row],
        },
        schema=SCHEMAS["quarantine"],
    )


def times(us: NDArray[np.int64]) -> pl.Series:
    """Return UTC microseconds ([N] int64) as a column of times."""
    return pl.Series(us).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def describe(acquired: Acquired) -> str:
    """Return the run as Markdown for a person."""
    span = f"{acquired.first:%Y-%m-%d %H:%M} to {acquired.last:%Y-%m-%d %H:%M} UTC" if acquired.first else "–"
    return "\n".join(
        (
            "| | |",
            "|---|---|",
            f"| messages | {acquired.messages:,} |",
            f"| new readings | {acquired.readings:,} |",
            f"| duplicates dropped | {acquired.duplicates:,} |",
            f"| quarantined | {acquired.quarantined:,} |",
            f"| devices | {acquired.devices:,} |",
            f"| event times | {span} |",
            f"| table `readings` | version {acquired.table_version} |",
            f"| stream position | {acquired.last_sequence:,} |",
            "",
            f"_{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC_",
        )
    )
