"""Maintain: compact the lake's tables, delete files that are not needed any more, close runs of the killed, report."""

from prefect import flow
from prefect.artifacts import create_table_artifact

from tasks.maintain import TABLES, KeepDays, Maintained, close_abandoned_runs, maintain_examples, maintain_table, rows


@flow(name="maintain", timeout_seconds=4 * 3600, validate_parameters=True)
def maintain(
    keep_days: KeepDays = 30,
) -> list[Maintained]:
    """Make each table's small files few, well sorted and encoded; safe beside all other flows.

    Args:
        keep_days: Versions of the tables younger than so many days stay readable. Those of grids and windows that a
            registered model was made from always do.
    """
    maintained = [maintain_table(table, keep_days) for table in TABLES] + maintain_examples(keep_days)
    close_abandoned_runs()
    create_table_artifact(rows(maintained), key="maintain", description="Sizes of the lake's tables, before and after")
    return maintained
