"""When a task is tried again: where what failed may pass by itself, and not where a person has to mend it."""

from typing import Any

from fieldloop.domain.errors import ReleaseError


def may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Say whether a task that failed should be tried again; for Prefect's `retry_condition_fn`."""
    return not isinstance(state.result(raise_on_failure=False), ReleaseError)
