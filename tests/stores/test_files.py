"""Files of appended rows: what any reader of the table then sees, and which of two writers wins."""

from pathlib import Path

import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from fieldloop.stores import files

ROWS = pl.DataFrame(
    {"device": ["b", "a", "b"], "value": [0.1, -0.0, 3.0], "year": [2020, 2021, 2021]},
    schema={"device": pl.Enum(["b", "a"]), "value": pl.Float64, "year": pl.Int32},
)
TEXTS = ROWS.with_columns(pl.col("device").cast(pl.String))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty table of the rows' columns."""
    write_deltalake(tmp_path, TEXTS[:0].to_arrow(compat_level=pl.CompatLevel.oldest()), partition_by=["year"])
    return tmp_path


def append(folder: Path, handle: DeltaTable, application: str) -> None:
    def put(path: str, data: bytes) -> None:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)

    properties = CommitProperties(app_transactions=[Transaction(application, 1)])
    files.append(handle, ROWS, ["year"], put, properties)


def test_names_are_read_as_texts_and_found_by_statistics(folder: Path) -> None:
    """A name written by its number is a text to readers; least and greatest are those of the texts, not the numbers."""
    handle = DeltaTable(folder)
    append(folder, handle, "app")
    stored = pl.read_delta(str(folder)).sort("year", "value")
    assert stored.equals(TEXTS.sort("year", "value"))
    assert handle.version() == 1
    added = pl.DataFrame(handle.get_add_actions(flatten=True)).sort("partition.year")
    assert added.select("num_records", "min.device", "max.device").rows() == [(1, "b", "b"), (2, "a", "b")]


def test_a_writer_of_the_same_application_that_was_overtaken_does_not_commit(folder: Path) -> None:
    """Of two that looked at the same version one wins; another application is not held up."""
    first, second, other = (DeltaTable(folder) for _ in range(3))
    append(folder, first, "app")
    with pytest.raises(CommitFailedError):
        append(folder, second, "app")
    append(folder, other, "other")
    assert len(pl.read_delta(str(folder))) == 2 * len(ROWS)
