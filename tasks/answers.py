"""A person's answer, handed to a flow run that waits for it."""

import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult

FORM_S: Final = 5.0  # that a run which waits may be without its form
_POLL_S: Final = 0.2
_NO_FORM: Final = "Run input schema not found."


def resume(client: SyncPrefectClient, run: UUID, answer: Mapping[str, str] | None) -> OrchestrationResult[Any]:
    """Let a paused flow run go on, with an answer where it asks.

    Prefect writes down that a run waits before it writes down what it asks, and takes no answer in between: that is
    waited for. A run that was killed in between never asks; Prefect's refusal is returned then, as any other is.
    """
    deadline = time.monotonic() + FORM_S
    while True:
        result = client.resume_flow_run(run, run_input=None if answer is None else dict(answer))
        if getattr(result.details, "reason", "") != _NO_FORM or time.monotonic() > deadline:
            return result
        time.sleep(_POLL_S)
