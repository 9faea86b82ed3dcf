"""Landing: messages of devices into the tables `readings` and `quarantine`, exactly once, from whatever source.

A batch is decoded whole (`Decoder`), then committed with the source's position as application transactions (`Landing`):
what is refused first, then the readings. A batch that comes again changes nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from expectations.profiles import load_profile
from fieldloop.domain.carry import Carried, Carry
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.harmonize import harmonize, harmonize_table
from fieldloop.domain.payloads.records import Table
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Messages, Named, Readings, Reason, Reject
from fieldloop.domain.windows import OUT_OF_STREAM
from fieldloop.stores import carried, fleet
from fieldloop.stores.lake import Lake, Snapshot
from fieldloop.stores.tables import SCHEMAS
from tasks.contracts import Contracts

KEY = ("device", "metric", "event_time")
NAMES = ("device", "metric")
STORED = ("device", "event_time", "metric")  # what a message brought stays together: smallest, see compaction


@dataclass(frozen=True)
class Batch:
    """A batch of messages, the rows of table `readings` in them, what was refused, and what is left for later ones."""

    messages: Messages
    subjects: Sequence[str]
    rows: pl.DataFrame
    rejects: Sequence[Reject]
    left: Sequence[tuple[str, int, Carried]]


@dataclass(frozen=True)
class Landed:
    """What batches brought in.

    Attributes:
        messages: messages read.
        readings: rows that are new in table `readings`.
        duplicates: readings dropped because their (device, metric, event time) was there already.
        quarantined: rows that are new in table `quarantine`.
        resent: the duplicates, a device.
        devices: names of those that sent new readings.
        first: earliest event time among the new readings; None where there are none.
        last: latest event time among them.
        version: newest version of `readings` that a batch made; None where there was none.
    """

    messages: int = 0
    readings: int = 0
    duplicates: int = 0
    quarantined: int = 0
    resent: Mapping[str, int] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    first: datetime | None = None
    last: datetime | None = None
    version: int | None = None

    def __add__(self, other: "Landed") -> "Landed":
        """Return both together."""
        names = self.resent.keys() | other.resent.keys()
        resent = {name: self.resent.get(name, 0) + other.resent.get(name, 0) for name in names}
        return Landed(
            self.messages + other.messages,
            self.readings + other.readings,
            self.duplicates + other.duplicates,
            self.quarantined + other.quarantined,
            resent,
            self.devices | other.devices,
            min((time for time in (self.first, other.first) if time), default=None),
            max((time for time in (self.last, other.last) if time), default=None),
            max((version for version in (self.version, other.version) if version is not None), default=None),
        )


class Landing:
    """Commits batches of one source, one after another.

    Args:
        lake: where to.
        application_of: the application in whose name a device's messages are committed. Its transactions are positions
            in the source: of the last message that the tables have.
    """

    def __init__(self, lake: Lake, application_of: Callable[[str], str]) -> None:
        self._lake = lake
        self._application_of = application_of
        self._readings = lake.snapshot("readings")
        self._quarantine = lake.snapshot("quarantine")

    def land(self, batch: Batch, transactions: Mapping[str, int]) -> Landed:
        """Bring one batch into the lake; when this returns, it is there.

        Args:
            batch: what was decoded. Messages that a transaction of their application covers already count as landed.
            transactions: the position of each application with this batch.

        Raises:
            StoreError: the lake cannot be reached, or another writer of these applications committed at the same time.
        """
        carried.keep(self._lake, batch.left)
        self._quarantine = self._lake.renewed(self._quarantine)
        quarantined = quarantine(
            self._lake,
            self._quarantine,
            batch.messages,
            batch.subjects,
            batch.rejects,
            transactions,
            self._application_of,
        )
        self._readings = self._lake.renewed(self._readings)
        if self._readings.has(transactions):
            return Landed(quarantined=quarantined)
        fresh = new_readings(self._readings, batch.rows)
        figures = {
            "messages": len(batch.messages.payloads),
            "duplicates": len(batch.rows) - len(fresh),
            "quarantined": len(batch.rejects),
        }
        version = self._lake.append("readings", fresh, transactions, figures, self._readings)
        first, last = fresh.select(pl.col("event_time").min(), last=pl.col("event_time").max()).row(0)
        return Landed(
            figures["messages"],
            len(fresh),
            figures["duplicates"],
            quarantined,
            _resent(batch.rows, fresh),
            frozenset(fresh["device"].unique()),
            first,
            last,
            version,
        )


class Decoder:
    """Harmonizes messages of all devices of the fleet, by their profiles as they are now."""

    def __init__(
        self, lake: Lake, root: Path, space: str = "", *, carry: Carry | None = None, remember: bool = True
    ) -> None:
        """Remember where fleet and profiles are, whose positions are judged, and whether to keep what is learnt.

        Args:
            lake: where tables and memory are.
            root: where the device profiles lie.
            space: see `Contracts`.
            carry: what devices have left behind; where None, nothing.
            remember: see `Contracts`.
        """
        self.carry = carry or Carry()
        self.contracts = Contracts(lake, root, space, remember=remember)
        self._lake = lake
        self._root = root
        self._profile_names: dict[str, str] = {}
        self._profiles: dict[str, Profile | DocumentError] = {}

    def decode(self, messages: Messages, replay: int = 0) -> tuple[pl.DataFrame, list[Reject]]:
        """Return a batch as rows of table `readings`, names as `Enum`, and everything that was refused.

        The rows of a profile's devices stand together by device, those of one device in order of arrival.

        Args:
            messages: in order of arrival.
            replay: the replay that brings them; 0 for messages as they come.
        """
        messages = replace(messages, carry=self.carry)
        rejects: list[Reject] = []
        senders = [(self._profile(name), rows) for name, rows in self._by_profile(messages.devices)]
        # In the profile's order, so that the channels of a record are in order as they come.
        metrics = dict.fromkeys(
            metric for profile, _ in senders if isinstance(profile, Profile) for metric in profile.metrics()
        )
        kinds = pl.Enum(sorted(Named.of(messages.devices).names)), pl.Enum(list(metrics))
        frames = [pl.DataFrame(schema={**SCHEMAS["readings"], **dict(zip(NAMES, kinds, strict=True))})]
        for profile, rows in senders:
            if isinstance(profile, Profile):
                part = messages.take(rows)
                admitted, barred = self.contracts.admit(profile, part)
                rejects += [reject.at(int(rows[reject.message])) for reject in barred]
                part, rows = part.take(admitted), rows[admitted]
                readings, refused = self.contracts.judge(profile, part, *harmonize(profile, part))
                readings = _by_device(part, readings)
                frames.append(_frame(profile, part, readings, replay, kinds))
                rejects += [reject.at(int(rows[reject.message])) for reject in refused]
            else:
                rejects += [
                    Reject(row, None, Reason.UNKNOWN_DEVICE, f"device `{messages.devices[row]}`: {profile}")
                    for row in rows.tolist()
                ]
        self.contracts.keep()
        return pl.concat(frames), rejects

    def decode_rows(
        self, profile: Profile, messages: Messages, table: Table | None, *, judged: bool
    ) -> tuple[pl.DataFrame, list[Reject]]:
        """Return rows of a source as rows of table `readings`, and everything that was refused.

        Args:
            profile: of all their devices.
            messages: whose rows they are, when they came, and their place among all that the source gave.
            table: their raw entries where they came in columns; else the payloads are read.
            judged: whether the contract watch looks at them; they must have been admitted then.
        """
        messages = replace(messages, carry=self.carry)
        readings, refused = harmonize(profile, messages) if table is None else harmonize_table(profile, messages, table)
        if judged:
            readings, refused = self.contracts.judge(profile, messages, readings, refused)
        rows = _frame(profile, messages, readings, 0, (pl.String(), pl.String()))
        return rows.with_columns(sequence=pl.lit(OUT_OF_STREAM, pl.Int64)), refused

    def _by_profile(self, senders: Sequence[str]) -> list[tuple[str | None, NDArray[np.int64]]]:
        """Return the rows of the messages of each profile, in order; None for devices that have none."""
        devices = Named.of(senders)
        names = self._names(set(devices.names))
        profile_of = Named.of([names.get(device, "") for device in devices.names])
        code = profile_of.codes[devices.codes]
        return [(name or None, np.flatnonzero(code == number)) for number, name in enumerate(profile_of.names)]

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


def _resent(rows: pl.DataFrame, fresh: pl.DataFrame) -> dict[str, int]:
    """Return how many rows of each device are not among the fresh ones."""
    if len(rows) == len(fresh):
        return {}
    new = dict(fresh["device"].value_counts().iter_rows())
    sent = rows["device"].value_counts().iter_rows()
    return {device: count - new.get(device, 0) for device, count in sent if count > new.get(device, 0)}


def new_readings(snapshot: Snapshot, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the first of each (device, metric, event time) that the table does not have yet, sorted for storage."""
    unique = _distinct(rows)
    if len(unique):
        first, last = unique.select(pl.col("event_time").min(), last=pl.col("event_time").max()).row(0)
        span = pl.col("event_time").is_between(first, last) & pl.col("year").is_between(first.year, last.year)
        stored = snapshot.scan().filter(
            span, pl.col("device").is_in(unique["device"].unique().cast(pl.String).implode())
        )
        there = stored.select(KEY).collect()
        if len(there):
            unique = _without(unique, there)
    return unique


def _without(rows: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """Return the rows, names as `Enum`, whose keys are not among those that are there; looks at times of both alone."""
    there = there.with_columns(pl.col(name).cast(rows[name].dtype, strict=False) for name in NAMES)
    when = pl.col("event_time").is_between(there["event_time"].min(), there["event_time"].max())
    again = rows.select(KEY).with_row_index("row").filter(when).join(there, on=KEY, how="semi")["row"]
    if not len(again):
        return rows
    kept = np.ones(len(rows), dtype=np.bool_)
    kept[again.to_numpy()] = False
    return rows.filter(kept)


def _distinct(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the first of each (device, metric, event time), sorted for storage; names as `Enum`, in its order.

    Equal keys are neighbours once sorted. Devices mostly send in order of time, so to sort by device is mostly enough,
    and what `Decoder.decode` made of one profile stands by device already.
    """
    rows = rows.with_columns(
        pl.col(name).cast(pl.Enum(rows[name].unique().sort())) for name in NAMES if rows[name].dtype == pl.String
    )
    device, when, metric = (rows[name].to_physical().to_numpy() for name in STORED)
    if (device[1:] >= device[:-1]).all() and _increases(device, when, metric).all():
        return rows
    order = np.argsort(device, kind="stable")
    if not _increases(device[order], when[order], metric[order]).all():
        order = np.lexsort((metric, when, device))
        order = order[_increases(device[order], when[order], metric[order])]
    return rows[order]


def _increases(device: NDArray[Any], when: NDArray[Any], metric: NDArray[Any]) -> NDArray[np.bool_]:
    """Say of each key, sorted by device, whether it comes after the one before it ([N] bool); the first one does."""
    later = when[1:] > when[:-1]
    same_time = when[1:] == when[:-1]
    other_device = device[1:] != device[:-1]
    increases = other_device | later | (same_time & (metric[1:] > metric[:-1]))
    return np.concatenate([np.ones(min(len(when), 1), dtype=np.bool_), increases])


def _by_device(messages: Messages, readings: Readings) -> Readings:
    """Return readings sorted by the names of their devices, those of one device in order of arrival."""
    devices = Named.of(messages.devices)
    rank = np.empty(len(devices.names), dtype=np.uint16 if len(devices.names) <= 1 << 16 else np.int32)
    rank[sorted(range(len(rank)), key=devices.names.__getitem__)] = np.arange(len(rank))
    turn = np.argsort(rank[devices.codes], kind="stable")
    number = np.bincount(readings.message, minlength=len(turn))
    begin, number = (np.cumsum(number) - number)[turn], number[turn]
    order = np.repeat(begin - (np.cumsum(number) - number), number) + np.arange(len(readings))
    return Readings(readings.message[order], readings.metric[order], readings.event_us[order], readings.value[order])


def _frame(
    profile: Profile, messages: Messages, readings: Readings, replay: int, kinds: tuple[pl.DataType, pl.DataType]
) -> pl.DataFrame:
    """Give readings their device, arrival and position: columns of table `readings`, names of the given kinds."""
    event_time = times(readings.event_us)
    devices = Named.of(messages.devices)
    return pl.DataFrame(
        {
            "device": pl.Series(devices.names, dtype=kinds[0]).gather(devices.codes[readings.message]),
            "metric": pl.Series(profile.metrics(), dtype=kinds[1]).gather(readings.metric.astype(np.int64)),
            "event_time": event_time,
            "arrival_time": times(messages.arrival_us[readings.message]),
            "value": readings.value,
            "sequence": messages.sequence[readings.message],
            "replay": np.full(len(readings), replay),
            "year": _years(event_time),
        },
        schema={**SCHEMAS["readings"], **dict(zip(NAMES, kinds, strict=True))},
    )


def _years(event_time: pl.Series) -> pl.Series:
    """Return the years of times; of so many, nearly always one."""
    years = pl.Series([event_time.min(), event_time.max()], dtype=event_time.dtype).dt.year()
    if not len(event_time) or years[0] != years[1]:
        return event_time.dt.year()
    return pl.repeat(years[0], len(event_time), dtype=pl.Int32, eager=True)


def quarantine(
    lake: Lake,
    snapshot: Snapshot,
    messages: Messages,
    subjects: Sequence[str],
    rejects: Sequence[Reject],
    transactions: Mapping[str, int],
    application_of: Callable[[str], str],
) -> int:
    """Keep what a batch refused, with its raw bytes and the reason; return how many rows are new.

    Messages at or before their application's transaction are there already, so a batch that comes again adds nothing.
    """
    if not rejects:
        return 0
    done = {application: snapshot.transaction(application) for application in transactions}
    fresh = [
        reject
        for reject in rejects
        if messages.sequence[reject.message] > done[application_of(messages.devices[reject.message])]
    ]
    if fresh:
        lake.append("quarantine", refused(messages, subjects, fresh), transactions, snapshot=snapshot)
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
    return pl.Series(us).cast(pl.Datetime("us", "UTC"))
