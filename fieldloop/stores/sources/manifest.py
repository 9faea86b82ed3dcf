"""What is in the lake of each source: table `sources`, of which a row counts once its readings are committed.

Batches are entered before their readings are committed, under a number that is then the source's application
transaction in `readings`; notes between them share it. Each row also says which transaction it came after, so that the
newest one leads back through all that were committed; what a killed run entered and never committed is on no such path.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl

from fieldloop.stores.lake import Lake
from fieldloop.stores.sources.source import Batch, Note, Position
from fieldloop.stores.tables import SCHEMAS

NOTE: Final = 0  # number of a row that remembers something without readings


def application(source: str) -> str:
    """Return the source's name among the application transactions."""
    return f"source/{source}"


@dataclass(frozen=True)
class Entry:
    """A row of the table: how far a source was with an item."""

    number: int
    item: str
    position: Position
    rows: int
    error: str
    entered_at: datetime


class Manifest:
    """The manifest of one source."""

    def __init__(self, lake: Lake, source: str) -> None:
        """Remember whose manifest it is."""
        self._lake = lake
        self._source = source

    def entries(self) -> list[Entry]:
        """Return what is in the lake, and all notes, oldest first."""
        newest = self._lake.transaction("readings", application(self._source))
        rows = self._mine().sort("entered_at", maintain_order=True).collect().to_dicts()
        committed = _committed({row["number"]: row["after"] for row in rows if row["number"] != NOTE}, newest)
        return [
            Entry(row["number"], row["item"], json.loads(row["position"]), row["rows"], row["error"], row["entered_at"])
            for row in rows
            if row["number"] == NOTE or row["number"] in committed
        ]

    def enter(self, after: int, gathered: Sequence[Batch | Note]) -> int:
        """Enter what is about to be committed behind transaction `after`, and return its number.

        Of two runs of one source at the same time, one fails here or when it commits.

        Raises:
            StoreError: the lake does not answer, or another run of this source was quicker.
        """
        snapshot = self._lake.snapshot("sources")
        number = max(snapshot.transaction(application(self._source)), after) + 1
        transaction = (application(self._source), number)
        self._lake.append("sources", self._frame(number, after, gathered), transaction, snapshot=snapshot)
        return number

    def remember(self, gathered: Sequence[Batch | Note]) -> None:
        """Enter notes that come without a commit.

        Raises:
            StoreError: the lake does not answer.
        """
        self._lake.append("sources", self._frame(NOTE, NOTE, gathered))

    def _mine(self) -> pl.LazyFrame:
        return self._lake.scan("sources").filter(pl.col("source") == self._source)

    def _frame(self, number: int, after: int, gathered: Sequence[Batch | Note]) -> pl.DataFrame:
        """Return rows in order: each a microsecond after the one before."""
        now = datetime.now(UTC)
        rows = [
            (
                self._source,
                number,
                after,
                each.item,
                json.dumps(each.position),
                len(each) if isinstance(each, Batch) else 0,
                each.error if isinstance(each, Note) else "",
                now + timedelta(microseconds=place),
            )
            for place, each in enumerate(gathered)
        ]
        return pl.DataFrame(rows, schema=SCHEMAS["sources"], orient="row")


def _committed(after: dict[int, int], newest: int) -> set[int]:
    """Return the numbers on the path that leads back from the newest transaction."""
    path: set[int] = set()
    while newest in after and newest not in path:
        path.add(newest)
        newest = after[newest]
    return path
