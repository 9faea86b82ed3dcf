"""Maintain: keep the lake's tables small and quick while acquisition goes on.

Order of steps, a table at a time: make many small files few (`compact`), delete what no version of the last weeks needs
(`vacuum`), and say how large the table was and is. At the end, close the runs in MLflow of trainings that were killed.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

from prefect import task
from pydantic import Field

from fieldloop.domain.errors import DocumentError
from fieldloop.domain.recipe import load_recipe, recipe_names
from fieldloop.stores import compaction, registry
from fieldloop.stores.compaction import LAYOUTS, Size
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.ancestry import newest_whole
from tasks.tags import CONTENT, GRID_VERSION, SEARCH, WINDOWS_VERSION

TABLES: Final = tuple(LAYOUTS)
TIMEOUT_S: Final = 3600
ABANDONED_AFTER: Final = timedelta(days=1)  # no training takes so long: the flow's own limit is two hours
_RUNS: Final = 1_000  # closed at once; the rest the next night

# Below a week, a run that reads an older version for long might lose its files.
KeepDays = Annotated[int, Field(ge=7, le=3650)]


@dataclass(frozen=True)
class Maintained:
    """What was done to one table.

    Attributes:
        table: its name.
        before: its size before.
        after: its size afterwards.
        replaced: small files that were made few.
        deleted: files deleted, which no version within the retention needs.
    """

    table: str
    before: Size
    after: Size
    replaced: int
    deleted: int


@task(name="maintain table", retries=2, retry_delay_seconds=10, timeout_seconds=TIMEOUT_S)
def maintain_table(table: str, keep_days: int) -> Maintained:
    """Compact and vacuum one table."""
    return maintain(Settings(), table, timedelta(days=keep_days))


@task(name="maintain examples", retries=2, retry_delay_seconds=10, timeout_seconds=TIMEOUT_S)
def maintain_examples(keep_days: int) -> list[Maintained]:
    """Vacuum the grids and windows of all recipes and their groups."""
    settings = Settings()
    names = learnt_under(settings.root)
    return [done for name in names for done in clear_examples(settings, name, timedelta(days=keep_days))]


def learnt_under(root: Path) -> list[str]:
    """Return the names under which tables and runs of recipes may be: each recipe's, and those of its groups.

    A recipe that cannot be read just now does not keep the others from upkeep: its own name has to do.
    """
    names = []
    for name in recipe_names(root):
        names.append(name)
        with suppress(DocumentError):
            names += [member.name for member in load_recipe(root, name).members if member.name != name]
    return names


def clear_examples(settings: Settings, recipe: str, keep: timedelta) -> list[Maintained]:
    """Delete what only versions of a recipe's grid and windows need that are older than `keep` and made no model.

    The versions that registered models were made from stay, however old, so that the models can be made again, and so
    does the one that a training takes that names none.

    Raises:
        StoreError: the lake or MLflow do not answer; nothing is deleted then.
    """
    lake, made = Lake(settings), registry.versions(settings, recipe)
    done = []
    for table, tag in ((f"grid/{recipe}", GRID_VERSION), (f"windows/{recipe}", WINDOWS_VERSION)):
        before = compaction.size(lake, table)
        commits = lake.commits(table)
        named = {newest_whole(commits), *(int(version.tags[tag]) for version in made if tag in version.tags)}
        pinned = {commit.version for commit in commits} & named
        deleted = compaction.vacuum(lake, table, keep, pinned)
        done.append(Maintained(table, before, compaction.size(lake, table), 0, deleted))
    return [each for each in done if each.before.files]


@task(name="close abandoned runs", retries=2, retry_delay_seconds=10, timeout_seconds=TIMEOUT_S)
def close_abandoned_runs() -> int:
    """Mark the runs of trainings that were killed; return how many."""
    settings, before = Settings(), datetime.now(UTC) - ABANDONED_AFTER
    return sum(len(close_abandoned(settings, name, before)) for name in learnt_under(settings.root))


def close_abandoned(settings: Settings, recipe: str, before: datetime) -> list[str]:
    """Mark as killed what MLflow takes for running and a training of a recipe began before a moment; return the runs.

    A training that still goes on in one of them finishes it all the same.
    """
    mlflow = registry.client(settings)
    experiment = mlflow.get_experiment_by_name(recipe)
    if experiment is None:
        return []
    running = mlflow.search_runs(
        [experiment.experiment_id],
        f"attributes.status = 'RUNNING' and attributes.start_time < {round(before.timestamp() * 1e3)}",
        max_results=_RUNS,
    )
    abandoned = [run.info.run_id for run in running if {CONTENT, SEARCH} & set(run.data.tags)]
    for run_id in abandoned:
        mlflow.set_terminated(run_id, "KILLED")
    return abandoned


def maintain(settings: Settings, table: str, keep: timedelta) -> Maintained:
    """Compact a table, delete what only versions older than `keep` need, and report; rows never change.

    Raises:
        StoreError: the lake does not answer, or another compaction committed at the same time.
    """
    lake = Lake(settings)
    before = compaction.size(lake, table)
    replaced = compaction.compact(settings, table).replaced
    deleted = compaction.vacuum(lake, table, keep)
    return Maintained(table, before, compaction.size(lake, table), replaced, deleted)


def rows(maintained: Sequence[Maintained]) -> list[dict[str, str]]:
    """Return a row a table, for a table artifact."""
    return [
        {
            "table": done.table,
            "rows": f"{done.after.rows:,}",
            "files": f"{done.before.files:,} → {done.after.files:,}",
            "bytes": f"{done.before.bytes:,} → {done.after.bytes:,}",
            "bytes a row": f"{_a_row(done.before)} → {_a_row(done.after)}",
            "old files deleted": f"{done.deleted:,}",
        }
        for done in maintained
    ]


def _a_row(size: Size) -> str:
    return f"{size.bytes / size.rows:.2f}" if size.rows else "–"
