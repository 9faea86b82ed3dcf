"""The server's database connections, on a real SQLite file."""

import asyncio
import gc
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import infra.local.prefect_server  # noqa: F401 - its listener is what is tested
from fieldloop.stores.settings import Settings
from infra.local.stack import stack_status


def test_garbage_of_a_failed_statement_holds_nobody_up(tmp_path: Path) -> None:
    """While a connection waits for the write lock, the loop that holds the lock collects what failed on it before."""

    async def act() -> int:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'server.db'}", connect_args={"timeout": 3})
        async with engine.connect() as first, engine.connect() as second:
            await first.execute(text("CREATE TABLE runs (id INTEGER PRIMARY KEY)"))
            await first.execute(text("INSERT INTO runs VALUES (1)"))
            await first.commit()
            await _fail(second)
            await first.execute(text("INSERT INTO runs VALUES (2)"))
            waiting = asyncio.create_task(_insert(second))
            await asyncio.sleep(0.5)  # until it waits for the lock that `first` holds
            gc.collect()
            await first.commit()
            await waiting
            count = (await first.execute(text("SELECT count(*) FROM runs"))).scalar_one()
        await engine.dispose()
        return int(count)

    gc.disable()
    try:
        assert asyncio.run(act()) == 3
    finally:
        gc.enable()


def test_the_platforms_server_is_run_so(platform: Settings) -> None:
    """Its process is ours, with the listener, and not Prefect's program itself."""
    state = stack_status(platform, "platform")
    assert state is not None
    assert "infra.local.prefect_server" in psutil.Process(state.service("prefect").pid).cmdline()


async def _fail(connection: AsyncConnection) -> None:
    """Leave a failed statement's cursor in a cycle, as an exception that was kept does."""
    with pytest.raises(IntegrityError) as failure:
        await connection.execute(text("INSERT INTO runs VALUES (1)"))
    kept = [failure.value]
    kept.append(kept)  # type: ignore[arg-type]
    await connection.rollback()


async def _insert(connection: AsyncConnection) -> None:
    await connection.execute(text("INSERT INTO runs VALUES (3)"))
    await connection.commit()
