"""Acquire: drain the devices' stream of the broker into the lake, exactly once.

Order of steps: see where the tables stand, read the stream from there in batches, land each (`tasks.landing`), then
acknowledge it. A large backlog is shared out over partitions, each in a process of its own (`tasks.crew`).
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

from prefect import task
from pydantic import Field

from fieldloop.domain.errors import StoreError
from fieldloop.domain.readings import Messages, Named
from fieldloop.stores import broker
from fieldloop.stores.drain import backlog, drain
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import SLOTS, Settings
from tasks.crew import Crew
from tasks.landing import Landed
from tasks.partitions import Partition, positions, slots_of

CONSUMER: Final = "lake"
ALONE_MESSAGES: Final = 50_000  # a backlog up to so many messages
ALONE_BYTES: Final = 8 << 20  # and bytes as they are stored, is drained sooner than further processes have started
SHOWN_DEVICES: Final = 10  # in the report, of those that sent most again
EVENT_DEVICES: Final = 1_000  # named in the event, at most

QuietSeconds = Annotated[float, Field(ge=0, le=600)]
PartitionNumber = Annotated[int, Field(ge=1, le=SLOTS)]

Prepared = TypeVar("Prepared")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acquired:
    """What one run brought in.

    Attributes:
        messages: messages read.
        readings: rows that are new in table `readings`.
        duplicates: readings dropped because their (device, metric, event time) was there already.
        resent: the duplicates, a device.
        quarantined: rows that went to table `quarantine`.
        last_sequence: stream sequence up to which the table holds everything of the partitions that were drained.
        devices: names of the devices that sent new readings, sorted.
        first: earliest event time among the new readings; None where there are none.
        last: latest event time among them.
        table_version: version of `readings` afterwards.
    """

    messages: int
    readings: int
    duplicates: int
    resent: Mapping[str, int]
    quarantined: int
    last_sequence: int
    devices: tuple[str, ...]
    first: datetime | None
    last: datetime | None
    table_version: int | None


@dataclass(frozen=True)
class Share:
    """A part of the stream: partition `number` (from 1) of so many; the whole is 1 of 1."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= SLOTS:
            raise StoreError(f"expected a partition from 1 to {self.of} (at most {SLOTS}), got {self.number}")

    @property
    def slots(self) -> tuple[int, ...]:
        """The slots of this part."""
        return slots_of(self.number - 1, self.of)

    @property
    def consumer(self) -> str:
        """The broker's consumer that reads it."""
        return CONSUMER if self.of == 1 else f"{CONSUMER}-{self.number}-of-{self.of}"


WHOLE: Final = Share()


@task(name="drain readings", retries=3, retry_delay_seconds=5, timeout_seconds=3600)
def drain_readings(quiet_s: float, share: Share) -> Acquired:
    """Drain stream `readings`, or a share of it, into the lake."""
    return acquire(Settings(), quiet_s, share)


def acquire(settings: Settings, quiet_s: float = 0, share: Share = WHOLE) -> Acquired:
    """Drain stream `readings` into the tables `readings` and `quarantine`.

    Args:
        settings: where the services are.
        quiet_s: go on until no message has come for so many seconds; 0 stops at what was there at the start.
        share: the part of the stream that is to be drained.

    Raises:
        StoreError: broker or lake cannot be reached, or another writer committed at the same time.
    """
    lake = Lake(settings)
    for table in ("readings", "quarantine", "carried"):
        lake.create(table)
    at = positions(lake)
    after = min(at[slot] for slot in share.slots)
    waiting = backlog(settings, broker.READINGS, after)
    alone = waiting.messages <= ALONE_MESSAGES and waiting.bytes <= ALONE_BYTES
    if alone or share.of > 1 or settings.partitions == 1:
        partition = Partition(lake, settings.root, share.slots)
        acquired = _drain(settings, share, after, quiet_s, partition.prepare, partition.commit)
        partition.close()
        return acquired
    shares = [slots_of(number, settings.partitions) for number in range(settings.partitions)]
    with Crew(settings, shares) as crew:
        return _drain(settings, share, after, quiet_s, crew.send, lambda _: crew.landed())


def _drain(
    settings: Settings,
    share: Share,
    after: int,
    quiet_s: float,
    prepare: Callable[[Messages, Named], Prepared],
    commit: Callable[[Prepared], Landed],
) -> Acquired:
    """Drain from a position on, and sum up."""
    total = Landed()

    def commit_batch(prepared: Prepared) -> None:
        nonlocal total
        landed = commit(prepared)
        total += landed
        logger.info(
            "readings version %s: %s rows from %s messages, %s duplicates, %s quarantined",
            landed.version,
            landed.readings,
            landed.messages,
            landed.duplicates,
            landed.quarantined,
        )

    drained = drain(settings, broker.READINGS, share.consumer, after, prepare, commit_batch, quiet_s)
    return Acquired(
        messages=drained.messages,
        readings=total.readings,
        duplicates=total.duplicates,
        resent=dict(sorted(total.resent.items())),
        quarantined=total.quarantined,
        last_sequence=drained.last_sequence,
        devices=tuple(sorted(total.devices)),
        first=total.first,
        last=total.last,
        table_version=Lake(settings).version("readings") if total.version is None else total.version,
    )


def landed_event(acquired: Acquired) -> dict[str, object]:
    """Return what event `fieldloop.readings.landed` says: table version, devices, span of event times, rows."""
    return {
        "table_version": acquired.table_version,
        "devices": len(acquired.devices),
        "names": acquired.devices[:EVENT_DEVICES],
        "rows": acquired.readings,
        "first": str(acquired.first),
        "last": str(acquired.last),
    }


def describe(acquired: Acquired) -> str:
    """Return the run as Markdown for a person."""
    span = f"{acquired.first:%Y-%m-%d %H:%M} to {acquired.last:%Y-%m-%d %H:%M} UTC" if acquired.first else "–"
    return "\n".join(
        (
            "| | |",
            "|---|---|",
            f"| messages | {acquired.messages:,} |",
            f"| new readings | {acquired.readings:,} |",
            f"| sent again, dropped | {acquired.duplicates:,} |",
            f"| quarantined | {acquired.quarantined:,} |",
            f"| devices | {len(acquired.devices):,} |",
            f"| event times | {span} |",
            f"| table `readings` | version {acquired.table_version} |",
            f"| stream position | {acquired.last_sequence:,} |",
            *_resent(acquired),
            "",
            f"_{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC_",
        )
    )


def _resent(acquired: Acquired) -> list[str]:
    """Return the devices that sent most again, as a table of their own."""
    most = sorted(acquired.resent.items(), key=lambda entry: (-entry[1], entry[0]))
    if not most:
        return []
    more = [f"| {len(most) - SHOWN_DEVICES:,} more | |"] if len(most) > SHOWN_DEVICES else []
    rows = [f"| {device} | {count:,} |" for device, count in most[:SHOWN_DEVICES]]
    return ["", "| device | readings sent again |", "|---|---|", *rows, *more]
