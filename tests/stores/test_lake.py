"""Delta tables: transactions that count once, versions that stay, errors that say what to do."""

from datetime import UTC, datetime

import polars as pl
import pytest

from fieldloop.domain.errors import StoreError
from fieldloop.stores.fleet import Target, add_devices, devices, targets
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS


@pytest.fixture(scope="module")
def lake(store: Settings) -> Lake:
    """Return the lake on the session's object store."""
    return Lake(store)


def rows(*values: int) -> pl.DataFrame:
    return pl.DataFrame({"value": values})


def test_a_transaction_is_committed_once(lake: Lake) -> None:
    """The same or an earlier transaction of an application changes nothing; another application's does."""
    first = lake.append("once", rows(1), ("app", 5))
    assert lake.append("once", rows(2), ("app", 5)) == first
    assert lake.append("once", rows(2), ("app", 4)) == first
    lake.append("once", rows(3), ("other", 1))
    lake.append("once", rows(4), ("app", 6))
    assert sorted(lake.scan("once").collect()["value"]) == [1, 3, 4]
    assert (lake.transaction("once", "app"), lake.transaction("once", "other")) == (6, 1)
    assert lake.transaction("nowhere", "app") == 0


def test_an_empty_commit_still_moves_the_transaction(lake: Lake) -> None:
    """A batch of nothing but duplicates has a position too."""
    lake.append("empty", rows(1), ("app", 1), {"duplicates": 0})
    lake.append("empty", rows(1).clear(), ("app", 2), {"duplicates": 7})
    assert lake.transaction("empty", "app") == 2
    assert [commit["duplicates"] for commit in lake.metadata("empty")] == ["7", "0"]


def test_a_writer_that_was_overtaken_does_not_commit(lake: Lake) -> None:
    """Two writers of one application that read the same state: exactly one wins; another application is not held up."""
    lake.append("race", rows(1), ("app", 1))
    stale = lake.snapshot("race")
    lake.append("race", rows(2), ("app", 2))
    with pytest.raises(StoreError, match="another writer was quicker"):
        lake.append("race", rows(9), ("app", 2), snapshot=stale)
    assert sorted(lake.scan("race").collect()["value"]) == [1, 2]
    lake.append("race", rows(3), ("else", 1), snapshot=stale)
    assert sorted(lake.scan("race").collect()["value"]) == [1, 2, 3]


def test_replaced_versions_stay_readable(lake: Lake) -> None:
    """Training reads the version it was given, whatever came since, new columns included."""
    old = lake.replace("grid/test", rows(1))
    new = lake.replace("grid/test", pl.DataFrame({"value": [2], "more": [3.0]}))
    assert lake.scan("grid/test", old).collect().to_dicts() == [{"value": 1}]
    assert lake.scan("grid/test", new).collect().to_dicts() == [{"value": 2, "more": 3.0}]


def test_a_missing_table_is_empty_where_known_and_named_where_not(lake: Lake) -> None:
    """A first run finds no readings; a flow out of turn is told what to run."""
    assert lake.version("predictions") is None
    assert lake.scan("predictions").collect().schema == pl.Schema(SCHEMAS["predictions"])
    with pytest.raises(StoreError, match="table 'grid/none' does not exist: run the flow"):
        lake.scan("grid/none")
    lake.append("versions", rows(1))
    with pytest.raises(StoreError, match=r"'versions' \(version 99\) cannot be opened"):
        lake.open("versions", 99)


def test_the_newest_entry_of_a_device_or_target_counts(lake: Lake) -> None:
    """Entering the same again adds nothing; entering it anew replaces what was."""
    before = devices(lake)
    add_devices(lake, ["entered-1", "entered-2"], "old")
    version = lake.version("devices")
    add_devices(lake, ["entered-1"], "old")
    assert lake.version("devices") == version
    add_devices(lake, ["entered-1"], "new")
    assert devices(lake) == before | {"entered-1": "new", "entered-2": "old"}
    for minute, served in ((1, ["d1"]), (2, ["d1", "d2"])):
        entry = ("gw-entered", served, ["site=n"], datetime(2026, 1, 1, 0, minute, tzinfo=UTC))
        lake.append("targets", pl.DataFrame([entry], schema=SCHEMAS["targets"], orient="row"))
    assert Target("gw-entered", ("d1", "d2"), ("site=n",)) in targets(lake)
    assert sum(target.name == "gw-entered" for target in targets(lake)) == 1
