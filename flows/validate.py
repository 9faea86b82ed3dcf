"""Validate: new readings against the suites of their device profile; a bad device is set aside, a bad set stops."""

from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from tasks.validate import enter_outcomes, find_new_readings, judge_readings, require_passed, unchanged
from tasks.verdict import ValidateResult, describe, describe_unchanged


@flow(name="validate", timeout_seconds=7200, validate_parameters=True)
def validate(
    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = "senvion-mm82",
    devices: Annotated[list[str] | None, Field(max_length=10_000)] = None,
    suite: Annotated[str | None, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] = None,
) -> ValidateResult:
    """Judge what came since each device last passed, and say which devices may be trained on.

    Args:
        profile: Name of a device profile, a file of `expectations/profiles/` without its ending.
        devices: Judge only these devices; all that have new readings where empty.
        suite: Name of a suite made from a data set, a file of `expectations/suites/` without its ending; where empty
            the one of the profile's name, if there is one.
    """
    new = find_new_readings(profile, devices or None, suite or None)
    if not new.spans:
        create_markdown_artifact(describe_unchanged(new), key="validate", description=f"Nothing new of {profile}")
        return unchanged(new)
    verdict = judge_readings(new)
    create_markdown_artifact(describe(new, verdict), key="validate", description=f"Whether {profile} data is good")
    require_passed(verdict)
    return enter_outcomes(new, verdict)
