"""Quarantine: what acquisition refused, and its replay once a profile is mended or a device enrolled.

The table is only ever appended to. Order of steps of a replay: choose messages (`waiting`), decode them by the profiles
as they are now, commit their readings under the positions and arrival times that they came with, then enter what became
of each message. Rows of a message that an earlier replay, or none, wrote are settled by the newest one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from fieldloop.domain.readings import Messages
from fieldloop.domain.windows import OUT_OF_STREAM
from fieldloop.stores import carried
from fieldloop.stores.history import enter_replay
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.contracts import SPACE
from tasks.landing import Decoder, new_readings, refused
from tasks.partitions import application_of

APPLICATION: Final = "replay"  # of the application transactions; its version is the number of the replay
REPLAYED: Final = "replayed"  # reason of the row that says a message is good now
MESSAGE: Final = ("subject", "sequence")  # what names a message: sequences of two streams may be the same
BATCH_MESSAGES: Final = 20_000  # messages of one commit, at most
BATCH_BYTES: Final = 64 << 20  # bytes of one commit, about

_STREAMED: Final = pl.col("subject").str.starts_with("devices.")
_COLLECTED: Final = pl.col("subject").str.starts_with("sources/") & (pl.col("sequence") > 0) & (pl.col("device") != "")
_OF_DEVICES: Final = _STREAMED | _COLLECTED  # the rest is kept to be looked at alone
_READ_US: Final = pl.col("arrival_time").dt.epoch("us")
_PLACE: Final = pl.when(_STREAMED).then("sequence").otherwise(_READ_US)  # by which messages of a space are in order


@dataclass(frozen=True)
class Choice:
    """Which rows of the quarantine are meant: those that fit everything that is given.

    Attributes:
        reason: a value of `Reason`.
        device: the device's name.
        sequence: position of the message in its stream.
    """

    reason: str | None = None
    device: str | None = None
    sequence: int | None = None

    def filters(self) -> list[pl.Expr]:
        """Return the choice as conditions on table `quarantine`."""
        wanted = {"reason": self.reason, "device": self.device, "sequence": self.sequence}
        return [pl.col(name) == value for name, value in wanted.items() if value is not None]


@dataclass(frozen=True)
class Replayed:
    """What a replay came to.

    Attributes:
        messages: messages decoded again.
        readings: rows that are new in table `readings`.
        duplicates: readings that were there already, such as the good fields of a message refused in part.
        settled: messages that are good now.
        refused: rows that stay in quarantine, with the reason that holds now.
    """

    messages: int = 0
    readings: int = 0
    duplicates: int = 0
    settled: int = 0
    refused: int = 0

    def __add__(self, other: "Replayed") -> "Replayed":
        """Return both together."""
        return Replayed(
            self.messages + other.messages,
            self.readings + other.readings,
            self.duplicates + other.duplicates,
            self.settled + other.settled,
            self.refused + other.refused,
        )


def waiting(lake: Lake) -> pl.LazyFrame:
    """Return the rows of the quarantine that no later replay has settled."""
    rows = lake.scan("quarantine")
    newest = rows.group_by(MESSAGE).agg(pl.col("replay").max())
    return rows.join(newest, on=(*MESSAGE, "replay")).filter(pl.col("reason") != REPLAYED)


def summary(lake: Lake, choice: Choice) -> pl.DataFrame:
    """Return a row a reason and device: reason, device, rows, messages, first and last arrival; most rows first."""
    return (
        waiting(lake)
        .filter(choice.filters())
        .group_by("reason", "device")
        .agg(
            rows=pl.len(),
            messages=pl.struct(MESSAGE).n_unique(),
            first=pl.col("arrival_time").min(),
            last=pl.col("arrival_time").max(),
        )
        .sort("rows", "reason", "device", descending=[True, False, False])
        .collect()
    )


def history(lake: Lake, choice: Choice, rows: int) -> pl.DataFrame:
    """Return rows as they are kept, at most so many, settled ones too: by message, then in order of the replays."""
    return lake.scan("quarantine").filter(choice.filters()).sort(*MESSAGE, "replay").head(rows).collect()


def replay(settings: Settings, choice: Choice) -> Replayed:
    """Decode the chosen messages again by the profiles as they are now; what is good lands, once.

    A message is decoded whole, whichever of its rows was chosen. Killed anywhere, the next replay finishes the work:
    readings are committed before their messages are settled, and those that are there already are not added again.

    Raises:
        StoreError: the lake cannot be reached, or acquisition or another replay committed at the same time.
    """
    lake = Lake(settings)
    decoders: dict[str, Decoder] = {}
    total = Replayed()
    for space, batch in _batches(lake, choice):
        if space not in decoders:
            carry = None if space else carried.whole(lake)  # positions are those of the stream
            decoders[space] = Decoder(lake, settings.root, space, carry=carry, remember=False)
        total += _replay_batch(lake, decoders[space], batch)
    return total


def _batches(lake: Lake, choice: Choice) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield the chosen messages (`MESSAGE`) of a space in order of arrival, as many at a time as one commit takes."""
    chosen = (
        waiting(lake)
        .filter(_OF_DEVICES, *choice.filters())
        .group_by(MESSAGE)
        .agg(size=pl.col("payload").bin.size().first(), place=_PLACE.first())
        .sort("place")
        .collect()
    )
    number = pl.max_horizontal(pl.col("size").cum_sum() // BATCH_BYTES, pl.int_range(pl.len()) // BATCH_MESSAGES)
    numbered = chosen.with_columns(number=number, space=SPACE)
    for part in numbered.partition_by("number", "space", maintain_order=True):
        yield part["space"][0], part.select(MESSAGE)


def _replay_batch(lake: Lake, decoder: Decoder, batch: pl.DataFrame) -> Replayed:
    rows = lake.scan("quarantine").join(batch.lazy(), on=MESSAGE, how="semi").unique(MESSAGE).sort(_PLACE).collect()
    messages = Messages(
        rows["device"].to_list(),
        rows["arrival_time"].to_physical().to_numpy(),
        rows["sequence"].to_numpy(),
        rows["payload"].to_list(),
    )
    placed = replace(messages, sequence=rows.select(_PLACE).to_series().to_numpy())
    readings, quarantine = lake.snapshot("readings"), lake.snapshot("quarantine")
    number = 1 + max(readings.transaction(APPLICATION), quarantine.transaction(APPLICATION))
    decoded, rejects = decoder.decode(placed, number)
    if not batch["subject"].str.starts_with("devices.").all():
        decoded = decoded.with_columns(sequence=pl.lit(OUT_OF_STREAM, pl.Int64))
    carried.keep(lake, decoder.carry.learnt())
    fresh = new_readings(readings, decoded)
    still = refused(messages, rows["subject"].to_list(), rejects, number)
    settled = _settled(rows, still, number)
    transaction = (APPLICATION, number)
    acquiring = sorted(set(map(application_of, rows["device"].unique())))  # others share no reading with these
    if len(fresh):
        enter_replay(lake, number)
        lake.append("readings", fresh, transaction, snapshot=readings, unless=acquiring)
    lake.append("quarantine", pl.concat([still, settled]), transaction, snapshot=quarantine)
    return Replayed(len(rows), len(fresh), len(decoded) - len(fresh), len(settled), len(still))


def _settled(rows: pl.DataFrame, still: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return the rows that say of messages that nothing in them is refused any more."""
    good = rows.join(still, on=MESSAGE, how="anti")
    return good.with_columns(
        metric=pl.lit(None, pl.String),
        reason=pl.lit(REPLAYED),
        detail=pl.format("by replay {}", pl.lit(number)),
        replay=pl.lit(number, pl.Int64),
        payload=pl.lit(b"", pl.Binary),
    ).select(SCHEMAS["quarantine"].keys())
