"""Approval: where a recipe asks for it, a person has the last word on a version that would become champion.

The question lies with the version, in its tags, and the flow run only waits for the answer: a run that is killed while
it waits leaves the question as it is, and the next run of *register* goes on with it: with what is left of its time, or
with the answer that was given to the run that is no more.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Final
from uuid import UUID

from prefect import pause_flow_run
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound
from prefect.input import RunInput, keyset_from_base_key
from prefect.runtime import flow_run
from prefect.states import Running
from pydantic import Field

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.domain.recipe.rules import LONGEST_APPROVAL_H
from fieldloop.stores import registry
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.answers import resume
from tasks.challenge import Outcome, Verdict, keep

LONGEST_S: Final = LONGEST_APPROVAL_H * 3600  # that a flow may wait for a person
ASKED: Final = "approval.asked"  # tags of a version: when a person was first asked, seconds since 1970,
RUN: Final = "approval.run"  # by which flow run,
ABOUT: Final = "approval.basis"  # and the verdict that all this is about
_POLL_S: Final = 2
_PAUSE: Final = "approval"  # key under which Prefect keeps the answer with the run
_OPEN: Final = (Outcome.FIRST, Outcome.WON, Outcome.INCOMPARABLE)


class Choice(StrEnum):
    """What a person may decide."""

    PROMOTE = "promote"
    REJECT = "reject"


class Approval(RunInput):
    """The form of a paused *register*."""

    choice: Choice = Field(Choice.REJECT, description="Make the version champion, or leave the champion as it is.")
    reason: str = Field("", description="Why; it stands in the model card.", max_length=500)


def asks(recipe: Recipe, verdict: Verdict) -> bool:
    """Say whether a person is to be asked."""
    return recipe.promotion.approval and verdict.outcome in _OPEN


def approve(recipe_name: str, number: int, verdict: Verdict) -> Verdict:
    """Wait within the flow run that calls this until a person has answered; nobody's answer rejects.

    Returns:
        the verdict as it is where the recipe asks nobody, else what the person made of it.
    """
    settings = Settings()
    recipe, version = load_recipe(settings.root, recipe_name), registry.version(settings, recipe_name, number)
    if not asks(recipe, verdict):
        return verdict
    choice, said = _wait(settings, version, verdict, recipe.promotion.approval_hours)
    outcome = Outcome.APPROVED if choice is Choice.PROMOTE else Outcome.REJECTED
    reason = f"{outcome} {said}; {verdict.reason}"
    after = replace(verdict, outcome=outcome, promoted=choice is Choice.PROMOTE, reason=reason)
    keep(settings, version, after)
    return after


def answer(settings: Settings, version: ModelVersion, choice: Choice, words: str) -> None:
    """Answer for a version whose flow run waits.

    Raises:
        ServiceError: none waits; says what to do.
    """
    run = version.tags.get(RUN)
    with SyncPrefectClient(api=settings.prefect_api) as client:
        try:
            state = client.read_flow_run(UUID(run)).state if run else None
        except ObjectNotFound:
            state = None
        if run is None or state is None or not state.is_paused():
            raise ServiceError(
                f"{version.label}: no flow run waits for an answer; run the flow `register` for this version's run "
                f"{version.run_id}, and answer then"
            )
        result = resume(client, UUID(run), {"choice": choice.value, "reason": words})
    if result.status.value != "ACCEPT":
        reason = str(getattr(result.details, "reason", "") or result.status.value).rstrip(".")
        raise ServiceError(
            f"{version.label}: Prefect says: {reason}; if the run that waited was killed, run the flow `register` for "
            f"this version's run {version.run_id}, and answer then"
        )


def _wait(settings: Settings, version: ModelVersion, verdict: Verdict, hours: float) -> tuple[Choice, str]:
    """Pause until a person has filled in the form, or the time since it was first asked is over."""
    asked = time.time()
    if version.tags.get(ABOUT) == verdict.basis:
        asked = float(version.tags[ASKED])
        given = _given(settings, version.tags[RUN])
        if given is not None:
            return given.choice, _by(given)
    _tag(settings, version, {ABOUT: verdict.basis, ASKED: f"{asked:.3f}", RUN: str(flow_run.id)})
    left_s = asked + hours * 3600 - time.time()
    nobody = Choice.REJECT, f"as nobody answered within {hours:g} h"
    if left_s <= 0:
        return nobody
    page = registry.version_url(settings, version)
    question = f"Is [{version.label}]({page}) to become champion? {verdict.outcome.capitalize()}: {verdict.reason}."
    form = Approval.with_initial_data(description=question, choice=Choice.REJECT, reason="")
    try:
        given = pause_flow_run(wait_for_input=form, timeout=math.ceil(left_s), poll_interval=_POLL_S, key=_PAUSE)
    except FlowPauseTimeout:
        with SyncPrefectClient(api=settings.prefect_api) as client:  # else the server fails the run as never resumed
            client.set_flow_run_state(UUID(flow_run.id), Running(), force=True)
        return nobody
    return given.choice, _by(given)


def _given(settings: Settings, run: str) -> Approval | None:
    """What a person has answered to a flow run that asked before, and was killed."""
    response = keyset_from_base_key(f"paused-{_PAUSE}")["response"]
    with SyncPrefectClient(api=settings.prefect_api) as client:
        found = client.filter_flow_run_input(UUID(run), response, limit=1, exclude_keys=set())
    return Approval.load_from_flow_run_input(found[0]) if found else None


def _by(given: Approval) -> str:
    return f"by a person{f' ({given.reason})' if given.reason else ''}"


def _tag(settings: Settings, version: ModelVersion, tags: Mapping[str, str]) -> None:
    mlflow = registry.client(settings)
    for key, value in tags.items():
        mlflow.set_model_version_tag(version.name, str(version.version), key, value)
