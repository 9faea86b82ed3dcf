"""Collect: bring what a declared source has that the lake does not have yet, exactly once.

Order of steps for each batch: find whose rows they are, decode them by the source's profile, keep what was refused,
enter the batch into the source's manifest, and commit the readings with its number there as application transaction.
Killed anywhere, the next run goes on behind the last batch that was committed.

These rows have no place in the broker's stream: their `sequence` is 0, and `replay` numbers what brought them, so that
validation takes them as new and none of them is late (docs/adr/0010). The contract watch judges them as it does the
stream's messages, in a space of the source's own: by when each was read.
"""

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import polars as pl
from prefect import task
from pydantic import Field

from expectations.profiles import load_profile
from fieldloop.domain.errors import StoreError
from fieldloop.domain.profile import Profile
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.sources.declaration import load_declaration, names
from fieldloop.stores.sources.manifest import Manifest, application
from fieldloop.stores.sources.source import Batch, ItemRefusedError, Note, Position, Relay
from tasks.landing import Decoder, new_readings
from tasks.partitions import APPLICATIONS as ACQUISITION
from tasks.quarantine import APPLICATION as REPLAY
from tasks.relay import relay
from tasks.rows import Owners, decode, keep, quarantined

COMMIT_READINGS: Final = 1_000_000  # of one commit, about; small files share one
COMMITS: Final = 6  # how often a commit is tried where others commit at the same time
WAIT_S: Final = 0.2  # before the second try; doubled each time

SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failed:
    """An item that could not be read, or not to its end, and why."""

    item: str
    error: str


@dataclass(frozen=True)
class Collected:
    """What one run brought in.

    Attributes:
        source: the source's name.
        batches: batches committed.
        rows: rows read.
        readings: rows that are new in table `readings`.
        duplicates: readings dropped because their (device, metric, event time) was there already.
        quarantined: rows that went to table `quarantine`.
        devices: how many devices have new readings.
        enrolled: devices that this run enrolled.
        first: earliest event time among the new readings; None where there are none.
        last: latest event time among them.
        failed: what could not be read; the rest was.
        table_version: version of `readings` afterwards; None where the source has nothing to do with the table.
        forwarded: messages that went into the platform's stream, for the flow `acquire` to bring in.
    """

    source: str
    batches: int = 0
    rows: int = 0
    readings: int = 0
    duplicates: int = 0
    quarantined: int = 0
    devices: int = 0
    enrolled: tuple[str, ...] = ()
    first: datetime | None = None
    last: datetime | None = None
    failed: tuple[Failed, ...] = ()
    table_version: int | None = None
    forwarded: int = 0


@task(name="collect from source", retries=2, retry_delay_seconds=10, timeout_seconds=6 * 3600)
def collect_source(source: str, again: bool) -> Collected:
    """Bring what is new of a declared source into the lake, or all of it once more."""
    return collect(Settings(), source, again)


def declared_sources() -> list[str]:
    """Return the names of all declared sources."""
    return names(Settings().root)


def collect(settings: Settings, name: str, again: bool = False) -> Collected:
    """Bring what is new of a declared source into the tables `readings` and `quarantine`, or into the stream.

    An item that cannot be read costs only itself: it is among `failed`.

    Args:
        settings: where the services are.
        name: the source's name.
        again: read all of it once more, as after the profile was mended; what is there already is not added again, and
            nothing is judged by the contract watch, which has seen it.

    Raises:
        DocumentError: there is no such source or profile, or they cannot be used.
        SourceError: the source as a whole cannot be read.
        StoreError: source or lake do not answer, or another run of the same source is under way.
    """
    declared = load_declaration(settings.root, name)
    profile = load_profile(settings.root, declared.profile)
    source = declared.open(settings, profile)
    lake = Lake(settings)
    for table in ("readings", "quarantine", "sources"):
        lake.create(table)
    if isinstance(source, Relay):
        relayed, enrolled = relay(lake, declared, source)
        return Collected(name, forwarded=relayed.stored, quarantined=relayed.strays, enrolled=enrolled)
    decoder = Decoder(lake, settings.root, name)
    judged = declared.watch and not again
    collector = _Collector(lake, decoder, profile, Owners(declared, fleet.devices(lake)), judged)
    done = collector.begin()
    collector.run(source.read([] if again else done))
    return collector.result()


@dataclass
class _Collector:
    """Gathers batches into commits, one after another, and keeps the run's figures."""

    lake: Lake
    decoder: Decoder
    profile: Profile
    owners: Owners
    judged: bool
    after: int = 0
    done: list[Position] = field(default_factory=list)
    batches: int = 0
    rows: int = 0
    readings: int = 0
    duplicates: int = 0
    quarantined: int = 0
    seen: set[str] = field(default_factory=set)
    first: datetime | None = None
    last: datetime | None = None
    enrolled: list[str] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    newcomers: list[str] = field(default_factory=list)
    pending: list[Batch | Note] = field(default_factory=list)
    decoded: list[pl.DataFrame] = field(default_factory=list)
    refused: list[pl.DataFrame] = field(default_factory=list)

    @property
    def source(self) -> str:
        return self.owners.declared.name

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.lake, self.source)

    def begin(self) -> list[Position]:
        """Return the positions of all that is in the lake."""
        self.after = self.lake.transaction("readings", application(self.source))
        self.done = [entry.position for entry in self.manifest.entries()]
        return self.done

    def run(self, found: Generator[Batch | Note, None, None]) -> None:
        """Take everything that a source gives; what it gave before an error is committed all the same."""
        try:
            self._gather(found)
        finally:
            self._flush()

    def result(self) -> Collected:
        """Return the figures."""
        return Collected(
            source=self.source,
            batches=self.batches,
            rows=self.rows,
            readings=self.readings,
            duplicates=self.duplicates,
            quarantined=self.quarantined,
            devices=len(self.seen),
            enrolled=tuple(self.enrolled),
            first=self.first,
            last=self.last,
            failed=tuple(self.failed),
            table_version=self.lake.version("readings"),
        )

    def _gather(self, found: Generator[Batch | Note, None, None]) -> None:
        refusal: ItemRefusedError | None = None
        while (event := _next(found, refusal)) is not None:
            refusal = None
            if isinstance(event, Note):
                self._note(event)
                continue
            try:
                self._decode(event)
            except ItemRefusedError as exc:
                refusal = exc
            if sum(map(len, self.decoded)) >= COMMIT_READINGS:
                self._flush()

    def _note(self, note: Note) -> None:
        if note.position is not None:
            self.pending.append(note)
        if note.error:
            logger.warning("source %s: %s", self.source, note.error)
            self.failed.append(Failed(note.item, note.error))

    def _decode(self, batch: Batch) -> None:
        owned = self.owners.of(self.profile, batch)
        self.owners.known.update(dict.fromkeys(owned.newcomers, self.profile.name))
        self.newcomers += owned.newcomers
        rows, rejects = decode(self.decoder, self.profile, owned, judged=self.judged)
        self.pending.append(batch)
        self.decoded.append(rows)
        self.refused.append(quarantined(self.profile, owned, rejects, f"sources/{self.source}"))
        self.batches += 1
        self.rows += len(batch) + sum(refusal.number > 0 for refusal in batch.refused)

    def _flush(self) -> None:
        """Bring what has been gathered into the lake; when this returns, it is there."""
        if self.newcomers:
            fleet.add_devices(self.lake, self.newcomers, self.profile.name)
        if self.decoded:
            self.quarantined += keep(self.lake, pl.concat(self.refused))
            self._count(rows := pl.concat(self.decoded), _persistently(lambda: self._commit(rows)))
            if self.judged:
                self.decoder.contracts.keep(now=True)
        elif self.pending:
            self.manifest.remember(self.pending)
        self.enrolled += self.newcomers
        self.newcomers, self.pending, self.decoded, self.refused = [], [], [], []

    def _commit(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Enter what was gathered into the manifest and commit its readings; return those that are new."""
        snapshot = self.lake.snapshot("readings")
        if snapshot.transaction(application(self.source)) != self.after:
            raise StoreError(f"source {self.source}: another run of it is under way; run again when that has ended")
        replay = 1 + max(snapshot.transaction(REPLAY), self.lake.transaction("quarantine", REPLAY))
        fresh = new_readings(snapshot, rows).with_columns(replay=pl.lit(replay, pl.Int64))
        if not len(fresh) and self.done and all(each.position == self.done[-1] for each in self.pending):
            return fresh  # read once more to be sure, and nothing has come
        number = self.manifest.enter(self.after, self.pending)
        self.lake.append(
            "readings",
            fresh,
            {application(self.source): number, REPLAY: replay},
            {"source": self.source, "duplicates": len(rows) - len(fresh)},
            snapshot,
            unless=ACQUISITION,
        )
        self.after = number
        return fresh

    def _count(self, rows: pl.DataFrame, fresh: pl.DataFrame) -> None:
        self.readings += len(fresh)
        self.duplicates += len(rows) - len(fresh)
        self.seen |= set(fresh["device"].unique())
        if len(fresh):
            first, last = fresh.select(pl.col("event_time").min(), last=pl.col("event_time").max()).row(0)
            self.first = min(first, self.first or first)
            self.last = max(last, self.last or last)
        items = len({each.item for each in self.pending})
        logger.info("source %s: %s new of %s readings from %s items", self.source, len(fresh), len(rows), items)


def _persistently(commit: Callable[[], pl.DataFrame]) -> pl.DataFrame:
    """Try again where another writer was quicker: it decides anew what is there already."""
    for tried in range(1, COMMITS):
        try:
            return commit()
        except StoreError as exc:
            logger.info("try %s of %s: %s", tried, COMMITS, exc)
            time.sleep(WAIT_S * 2**tried)
    return commit()


def _next(found: Generator[Batch | Note, None, None], refusal: ItemRefusedError | None) -> Batch | Note | None:
    """Return what a source gives next, told that the last was not taken where that is so; None at its end."""
    try:
        return next(found) if refusal is None else found.throw(refusal)
    except StopIteration:
        return None


def describe(collected: Collected) -> str:
    """Return the run as Markdown for a person."""
    span = f"{collected.first:%Y-%m-%d %H:%M} to {collected.last:%Y-%m-%d %H:%M} UTC" if collected.first else "–"
    rows = [
        ("rows read", f"{collected.rows:,} in {collected.batches:,} batches"),
        ("new readings", f"{collected.readings:,}"),
        ("duplicates dropped", f"{collected.duplicates:,}"),
        ("quarantined", f"{collected.quarantined:,}"),
        ("devices", f"{collected.devices:,}, of them enrolled now {len(collected.enrolled):,}"),
        ("event times", span),
        ("table `readings`", f"version {collected.table_version}"),
    ]
    if collected.forwarded:
        rows = [("messages passed on to the stream", f"{collected.forwarded:,}"), rows[3]]
    lines = [f"## Source {collected.source}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [f"\n**Not read:** {failed.error}" for failed in collected.failed]
    return "\n".join([*lines, "", f"_{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC_"])


@dataclass(frozen=True)
class Preview:
    """What the next run of a source would read first.

    Attributes:
        batches: batches that are in the lake.
        done_rows: rows in them.
        failed: what could not be read before the first batch was.
        item: where the first batch is from; empty where nothing is new.
        rows: how many it has.
        devices: whose they are.
        metrics: metric, readings, lowest, highest, first and last event time.
        refused: reason, an example, and how often.
    """

    batches: int
    done_rows: int
    failed: tuple[Failed, ...]
    item: str = ""
    rows: int = 0
    devices: tuple[str, ...] = ()
    metrics: tuple[tuple[str, int, float, float, datetime, datetime], ...] = ()
    refused: tuple[tuple[str, str, int], ...] = ()


def preview(settings: Settings, name: str) -> Preview:
    """Return what the next run would read first and what the profile makes of it; changes nothing.

    Raises:
        DocumentError: there is no such source or profile, or they cannot be used.
        SourceError: the source as a whole cannot be read.
        StoreError: source or lake do not answer.
    """
    declared = load_declaration(settings.root, name)
    profile = load_profile(settings.root, declared.profile)
    lake = Lake(settings)
    entries = Manifest(lake, name).entries()
    seen = Preview(sum(entry.rows > 0 for entry in entries), sum(entry.rows for entry in entries), ())
    failed: list[Failed] = []
    source = declared.open(settings, profile)
    if isinstance(source, Relay):
        return seen
    for event in source.read([entry.position for entry in entries]):
        if isinstance(event, Batch):
            owned = Owners(declared, fleet.devices(lake)).of(profile, event)
            rows, rejects = decode(Decoder(lake, settings.root, name), profile, owned, judged=False)
            waiting = quarantined(profile, owned, rejects, name)
            return replace(seen, failed=tuple(failed), rows=len(event), item=event.item, **_shown(rows, waiting))
        if event.error:
            failed.append(Failed(event.item, event.error))
    return replace(seen, failed=tuple(failed))


def _shown(rows: pl.DataFrame, waiting: pl.DataFrame) -> dict[str, Any]:
    by_metric = rows.group_by("metric", maintain_order=True).agg(
        pl.len(),
        lowest=pl.col("value").min(),
        highest=pl.col("value").max(),
        first=pl.col("event_time").min(),
        last=pl.col("event_time").max(),
    )
    refused = waiting.group_by("reason", maintain_order=True).agg(pl.col("detail").first(), pl.len())
    return {
        "devices": tuple(rows["device"].unique(maintain_order=True)),
        "metrics": tuple(by_metric.iter_rows()),
        "refused": tuple(refused.iter_rows()),
    }
