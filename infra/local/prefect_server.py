"""Prefect's own command line, with SQLite cursors that close themselves where their statement failed.

SQLAlchemy leaves such a cursor to the garbage collector, which may run in the thread of the server's event loop. The
collector then waits for the mutex of the cursor's connection. Where that connection waits for the write lock, and what
holds the lock is a task of the same loop, the server stands still until the busy timeout ends, a minute later (seen
with py-spy: the loop's thread in `sqlite3_reset`, below `gc_collect_main`).
"""

import sqlite3
import sys
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import Dialect


class SelfClosingCursor(sqlite3.Cursor):
    """A cursor that resets its statement in the thread in which it failed."""

    def execute(self, *args: Any) -> "SelfClosingCursor":
        """Execute one statement."""
        return self._closing(super().execute, *args)

    def executemany(self, *args: Any) -> "SelfClosingCursor":
        """Execute one statement for each set of parameters."""
        return self._closing(super().executemany, *args)

    def _closing(self, run: Callable[..., object], *args: object) -> "SelfClosingCursor":
        try:
            run(*args)
        except sqlite3.Error:
            self.close()
            raise
        return self


class Connection(sqlite3.Connection):
    """A connection whose cursors close themselves."""

    def cursor(self, factory: Any = SelfClosingCursor) -> Any:
        """Return a cursor."""
        return super().cursor(factory)


@event.listens_for(Engine, "do_connect")
def connect(dialect: Dialect, _record: object, _args: Iterable[object], parameters: dict[str, object]) -> None:
    """Have SQLite's connections be ours."""
    if dialect.name == "sqlite":
        parameters["factory"] = Connection


def main() -> int:
    """Run `prefect` with the arguments of this program."""
    from prefect.cli import app

    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
