"""Rows of a database into the lake: by a key that grows, once each, from a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import Engine, create_engine, text

from fieldloop.domain.errors import SourceError, StoreError
from fieldloop.domain.readings import Reason
from fieldloop.stores.settings import Settings
from infra.local.keys import write_private
from infra.local.ports import free_ports
from tasks.collect import collect
from tests.tasks.servers import postgres
from tests.tasks.sources import Workshop, kill_while_collecting, workshop

SOURCE = """
kind: sql
device: {field: meter}
enrol: true
options:
  secret: plant
  query: SELECT id, at, meter, level, state FROM rows
  key: KEY
  overlap: OVERLAP
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with postgres() as address:
        yield address


@pytest.fixture
def table(url: str) -> Iterator[Engine]:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE rows (id bigserial, at timestamptz, meter text, level numeric(9, 2), state text, changed "
                "timestamptz default now())"
            )
        )
    yield engine
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE rows"))
    engine.dispose()


@pytest.fixture
def shop(store: Settings, tmp_path: Path, url: str) -> Workshop:
    made = workshop(store, tmp_path)
    (made.secrets / "sources").mkdir(exist_ok=True)
    write_private(made.secrets / "sources" / "plant", url.encode())
    return made


def declare(shop: Workshop, name: str, key: str = "id", overlap: float = 0) -> str:
    return shop.source(name, SOURCE.replace("KEY", key).replace("OVERLAP", str(overlap)))


def insert(table: Engine, meter: str, first: int, count: int, id_: int | None = None) -> None:
    """Insert a row a minute, all under one key where one is given."""
    key = "DEFAULT" if id_ is None else str(id_)
    rows = [f"({key}, timestamptz '2020-01-01 00:00:00+02' + {n} * interval '1 minute', '{meter}', {n}.25, 'on')"
            for n in range(first, first + count)]  # fmt: skip
    with table.begin() as connection:
        connection.execute(text(f"INSERT INTO rows (id, at, meter, level, state) VALUES {', '.join(rows)}"))  # noqa: S608


def test_rows_behind_the_last_key_are_read(shop: Workshop, table: Engine) -> None:
    """Times with offsets, decimals and texts land; a second run reads one row again and commits nothing."""
    source = declare(shop, "sql-new")
    insert(table, "sql-1", 0, 10)
    first = collect(shop, source)
    assert (first.rows, first.readings, first.quarantined) == (10, 20, 0)
    stored = shop.stored("sql-1")
    assert stored.filter(pl.col("metric") == "level")["value"].to_list()[:2] == [0.25, 1.25]
    assert str(stored["event_time"][0]) == "2019-12-31 22:00:00+00:00"
    again = collect(shop, source)
    assert (again.rows, again.readings, again.table_version) == (1, 0, first.table_version)
    insert(table, "sql-1", 10, 5)
    assert collect(shop, source).readings == 10


def test_rows_that_share_a_key_are_not_missed(shop: Workshop, table: Engine) -> None:
    """A row with the very key at which a run ended, inserted later, is read."""
    source = declare(shop, "sql-ties", key="at")
    insert(table, "sql-2", 0, 3)
    collect(shop, source)
    insert(table, "sql-3", 2, 1)
    done = collect(shop, source)
    assert (done.rows, done.readings) == (2, 2)
    assert len(shop.stored("sql-3")) == 2


def test_late_committers_are_read_within_the_overlap(shop: Workshop, table: Engine) -> None:
    """A row whose key was taken earlier and committed later is found if it lies within the overlap."""
    source = declare(shop, "sql-late", overlap=100)
    insert(table, "sql-4", 0, 50, id_=1000)
    collect(shop, source)
    insert(table, "sql-5", 0, 1, id_=950)
    assert collect(shop, source).readings == 2
    insert(table, "sql-6", 0, 1, id_=800)
    assert collect(shop, source).readings == 0


def test_bad_rows_are_quarantined_once(shop: Workshop, table: Engine) -> None:
    """A row without time and one out of range, each by its key, also where they are read again."""
    source = declare(shop, "sql-bad", overlap=100)
    insert(table, "sql-7", 0, 2, id_=7)
    insert(table, "sql-7", 2, 1, id_=8)
    with table.begin() as connection:
        connection.execute(text("UPDATE rows SET at = NULL WHERE id = 8"))
        connection.execute(text("INSERT INTO rows (id, at, meter, level) VALUES (9, now(), 'sql-7', 99999)"))
    assert collect(shop, source).quarantined == 2
    insert(table, "sql-7", 5, 1, id_=10)
    assert collect(shop, source).quarantined == 0
    refused = shop.refused(source)
    assert refused["sequence"].to_list() == [8, 9]
    assert refused["reason"].to_list() == [Reason.NO_EVENT_TIME, Reason.OUT_OF_RANGE]


def test_killed_the_runs_together_bring_each_row_once(shop: Workshop, table: Engine) -> None:
    """Kill -9 between commits; the next run goes on behind the last key that was committed."""
    source = declare(shop, "sql-killed")
    insert(table, "sql-8", 0, 3000)
    small = (
        "from fieldloop.stores.sources import source; source.MAX_CELLS = source.MIN_ROWS = 200; "
        "collect.COMMIT_READINGS = 100"
    )
    kill_while_collecting(shop, source, small, commits=2)
    done = collect(shop, source)
    assert 0 < done.rows < 3000
    stored = shop.stored("sql-8")
    assert len(stored) == 6000 == len(stored.unique(["metric", "event_time"]))


def test_troubles_are_named_without_the_password(shop: Workshop, table: Engine, url: str) -> None:
    """No secret, a readable one, no table, no column, no server: each says what to do, none shows the URL."""
    source = declare(shop, "sql-wrong", key="nothing")
    with pytest.raises(SourceError, match='"nothing" does not exist') as refused:
        collect(shop, source)
    assert "secret" not in str(refused.value)
    path = shop.secrets / "sources" / "plant"
    path.chmod(0o644)
    with pytest.raises(SourceError, match="can be read by others"):
        collect(shop, source)
    write_private(path, f"postgresql+psycopg://plant:hidden@127.0.0.1:{free_ports(1)[0]}/postgres".encode())
    with pytest.raises(StoreError, match="does not answer") as away:
        collect(shop, source)
    assert "hidden" not in str(away.value)
    path.unlink()
    with pytest.raises(SourceError, match="no secret `plant`"):
        collect(shop, source)
