"""Collect: bring what declared sources (files, databases, services) have into the lake, exactly once."""

from datetime import UTC, datetime
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from pydantic import Field

from fieldloop.domain.errors import SourceError
from tasks.collect import Collected, SourceName, collect_source, declared_sources, describe
from tasks.readmission import announce, describe_settled, settle_doubts


@flow(name="collect", timeout_seconds=12 * 3600, validate_parameters=True)
def collect(
    sources: Annotated[list[SourceName] | None, Field(max_length=100)] = None,
    again: bool = False,
) -> list[Collected]:
    """Bring what is new of sources into the tables `readings` and `quarantine`; one that fails costs only itself.

    Args:
        sources: Names of declarations in expectations/sources/, without their endings; all that there are where empty.
        again: Read everything once more, as after a profile was mended; what is there already is not added again.
    """
    began = datetime.now(UTC)
    states = [collect_source(source, again, return_state=True) for source in sources or declared_sources()]
    done = [state.result() for state in states if state.is_completed()]
    settled = settle_doubts(began)
    for collected in done:
        _report(collected)
    if report := describe_settled(settled):
        create_markdown_artifact(report, key="collect-devices", description="Who was set aside or came back")
    announce(settled)
    failed = [failed.error for collected in done for failed in collected.failed]
    failed += [str(state.message) for state in states if not state.is_completed()]
    if failed:
        raise SourceError("; ".join(failed))
    return done


def _report(collected: Collected) -> None:
    """Show what a source brought in, and say that there are new readings."""
    key = f"collect-{collected.source}"
    create_markdown_artifact(describe(collected), key=key, description="What the last collection brought in")
    if collected.readings:
        emit_event(
            event="fieldloop.readings.landed",
            resource={"prefect.resource.id": "fieldloop.table.readings"},
            payload={
                "source": collected.source,
                "table_version": collected.table_version,
                "devices": collected.devices,
                "rows": collected.readings,
                "first": str(collected.first),
                "last": str(collected.last),
            },
        )
