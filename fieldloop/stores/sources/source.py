"""What every kind of source gives: batches of rows, each with the position behind which to go on."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fieldloop.domain.errors import SourceError
from fieldloop.domain.payloads.csv import passed_over
from fieldloop.domain.payloads.records import clock_fields
from fieldloop.domain.profile import Profile
from fieldloop.domain.readings import Reason
from fieldloop.stores.settings import Settings

GROUP: Final = "fieldloop.sources"  # entry points: kind to its class
MAX_CELLS: Final = 1_000_000  # of one batch: rows times channels, so that memory stays bounded
MIN_ROWS: Final = 1_000
COLUMNAR: Final = ("csv", "json")  # payload formats whose fields can be columns

Position = Mapping[str, Any]


class Options(BaseModel):
    """Base of a kind's own options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Request:
    """What a source is asked to read.

    Attributes:
        settings: where services and secrets are.
        profile: the compiled profile of the rows.
        device_field: field that names a row's device; None where it is fixed, or follows from the item's name.
    """

    settings: Settings
    profile: Profile
    device_field: str | None

    @property
    def clock_fields(self) -> tuple[str, ...]:
        """The fields without which no row has a time."""
        return clock_fields(self.profile)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields without which no row can be used."""
        return (*self.clock_fields, *([self.device_field] if self.device_field else []))

    @property
    def channels(self) -> tuple[str, ...]:
        """The fields of the profile's channels."""
        return tuple(channel.field for channel in self.profile.channels)

    @property
    def wanted(self) -> tuple[str, ...]:
        """All fields that are read, each once."""
        own = [self.profile.device_field] if self.profile.device_field else []
        return tuple(dict.fromkeys((*self.required, *own, *self.channels)))

    @property
    def batch_rows(self) -> int:
        """How many rows a batch may have."""
        return max(MIN_ROWS, MAX_CELLS // len(self.profile.channels))


@dataclass(frozen=True)
class Refusal:
    """What a source itself could not read.

    Attributes:
        number: the row's number in its item; 0 for what is said of the whole.
        metric: the field, where it is about one.
        reason: the class of the trouble.
        detail: what was expected, what was got.
        payload: the raw bytes.
    """

    number: int
    metric: str | None
    reason: Reason
    detail: str
    payload: bytes


@dataclass(frozen=True)
class Batch:
    """Rows of one item, and how far the source is with them.

    Attributes:
        item: where they are from, for people: a file's name, a table, an address.
        rows: columns by field path, or whole messages in the profile's payload format.
        numbers: [N] int64, what names a row within the item.
        position: what the source needs to go on behind these rows; plain JSON.
        refused: rows that could not be read; they are none of `rows`.
        edition: what tells contents of one name apart, so that row numbers stay unique.
    """

    item: str
    rows: pa.Table | Sequence[bytes]
    numbers: NDArray[np.int64]
    position: Position
    refused: tuple[Refusal, ...] = ()
    edition: str = ""

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Note:
    """Something that a source wants to remember without rows: a file seen again, or one that failed.

    Attributes:
        item: the file, table or address.
        position: as in `Batch`; None: there is nothing to remember, it is tried again by the next run.
        error: why it could not be read, or read to its end; empty where nothing is wrong.
    """

    item: str
    position: Position | None
    error: str = ""


class ItemRefusedError(SourceError):
    """Thrown into a source's iteration: what it last gave is not taken now, but may be another time."""


@dataclass(frozen=True)
class Stray:
    """A message of which no device can be told, or that the stream does not take."""

    topic: str
    reason: Reason
    detail: str
    payload: bytes


@dataclass(frozen=True)
class Relayed:
    """What a relay passed on: messages stored in the stream, and strays."""

    stored: int
    strays: int


class Owner(Protocol):
    """What a relay asks about a message."""

    def device_of(self, topic: str) -> str | None:
        """Return the device of a topic; None where none can be told."""

    def keep(self, messages: Sequence[Stray]) -> None:
        """Keep strays; when this returns they are safe."""


@runtime_checkable
class Relay(Protocol):
    """A kind of source that is followed live: its messages go into the platform's stream in place of the lake."""

    options: ClassVar[type[Options]]

    def __init__(self, request: Request, options: Any) -> None:
        """Remember what is asked for; nothing is opened yet.

        Raises:
            SourceError: the declaration does not fit.
        """

    def relay(self, owner: Owner) -> Relayed:
        """Pass messages on until none comes for a while; each is acknowledged where it came from once it is safe.

        Raises:
            SourceError: the source refuses us.
            StoreError: it or the platform's broker does not answer.
        """


class Source(Protocol):
    """A kind of source. A new one is a class like this, named by an entry point of group `fieldloop.sources`."""

    options: ClassVar[type[Options]]

    def __init__(self, request: Request, options: Any) -> None:
        """Remember what is asked for; nothing is opened yet.

        Raises:
            SourceError: the profile cannot be read from such a source.
        """

    def read(self, done: Sequence[Position]) -> Generator[Batch | Note, None, None]:
        """Yield what is new, in a fixed order; batches are committed in this order, several at a time.

        Where a batch is not taken, `ItemRefusedError` is thrown in: go on with the next item, or let it pass.

        Args:
            done: the positions of all batches that are in the lake, and of all notes, oldest first.

        Raises:
            SourceError: it cannot be read at all, for a reason that a person has to mend.
            StoreError: it does not answer; trying again may help.
        """


def require_columnar(request: Request, what: str) -> None:
    """Refuse a profile whose payloads are not records of named fields.

    Raises:
        SourceError: naming the profile and what it should be.
    """
    profile = request.profile
    if profile.format not in COLUMNAR:
        raise SourceError(
            f"{what} cannot be read by profile {profile.name} of format `{profile.format}`; "
            f"expected format {' or '.join(COLUMNAR)}"
        )


def require_columns(request: Request, names: Sequence[str], item: str) -> None:
    """Refuse an item without the columns that make its rows readable.

    Raises:
        SourceError: naming those that are missing and those that are there.
    """
    there = ", ".join(f"`{name}`" for name in names) or "none"
    if missing := [f"`{name}`" for name in request.required if name not in names]:
        raise SourceError(f"{item}: expected columns {', '.join(missing)} (time, device), there are: {there}")
    if not set(request.channels) & set(names):
        wanted = ", ".join(f"`{name}`" for name in request.channels)
        raise SourceError(f"{item}: expected some of the columns {wanted}, there are: {there}")


def unread_columns(request: Request, names: Sequence[str]) -> tuple[Refusal, ...]:
    """Return a refusal for every column that the profile neither reads nor ignores: one an item, not one a row."""
    return tuple(
        Refusal(0, name, Reason.UNKNOWN_METRIC, f"no channel reads column `{name}`", b"")
        for name in names
        if name not in request.wanted and not passed_over(request.profile, name)
    )
