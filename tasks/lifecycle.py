"""Lifecycle: which profiles the loop validates for a recipe, and what one turn of it came to, a line an outcome."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect import task

from fieldloop.domain.recipe import load_recipe
from fieldloop.stores.settings import Settings
from tasks.acquire import Acquired
from tasks.deploy import DeployResult
from tasks.preprocess import Preprocessed
from tasks.register import RegisterResult
from tasks.results import CandidateResult, TrainResult, shown
from tasks.verdict import ValidateResult


@dataclass(frozen=True)
class Outcome:
    """One line of the loop's table: the stage, and what it came to in words."""

    stage: str
    text: str


@dataclass(frozen=True)
class Learnt:
    """What one model came from: its tables, its training and its registration."""

    preprocessed: Preprocessed
    trained: TrainResult
    registered: RegisterResult


@task(name="read recipe", timeout_seconds=60)
def profiles_of(recipe: str) -> tuple[str, ...]:
    """Return the names of the device profiles that a recipe learns from."""
    return load_recipe(Settings().root, recipe).profiles


@task(name="read groups", timeout_seconds=60)
def members_of(recipe: str) -> tuple[str, ...]:
    """Return the names of the recipes that are learnt from: one a group of the recipe, else itself."""
    return tuple(member.name for member in load_recipe(Settings().root, recipe).members)


def summarize(
    acquired: Acquired, validated: Sequence[ValidateResult], learnt: Sequence[Learnt], deployed: DeployResult
) -> list[Outcome]:
    """Put one turn of the loop into lines for a person."""
    return [
        Outcome("acquire", f"{acquired.messages:,} messages in: {acquired.readings:,} new readings"),
        Outcome("acquire", f"{acquired.duplicates:,} duplicates dropped, {acquired.quarantined:,} quarantined"),
        *(outcome for result in validated for outcome in _validated(result)),
        *(outcome for each in learnt for outcome in _learnt(each)),
        Outcome("deploy", f"release {deployed.release[:12]} of {deployed.model} version {deployed.version}"),
        Outcome(
            "deploy",
            f"{deployed.proved} of {deployed.targets} targets proved, {deployed.exact} with the canary's very bits",
        ),
    ]


def _validated(result: ValidateResult) -> list[Outcome]:
    if not result.of:
        return [Outcome("validate", f"nothing new to judge; {len(result.devices)} devices have passed")]
    outcomes = [
        Outcome("validate", f"{result.passed} of {result.of} expectations passed on {result.readings:,} readings")
    ]
    outcomes += [Outcome("validate", f"set aside {device.device}: {device.reason}") for device in result.set_aside]
    return outcomes


def _learnt(learnt: Learnt) -> list[Outcome]:
    made = learnt.preprocessed
    return [
        Outcome("preprocess", f"{made.steps:,} grid steps of {len(made.devices)} devices{_reused(made)}"),
        Outcome("preprocess", f"{made.train:,} windows train, {made.validation:,} choose, {made.test:,} test"),
        *(Outcome("train", _candidate(candidate)) for candidate in learnt.trained.candidates),
        *_registered(learnt.registered),
    ]


def _reused(preprocessed: Preprocessed) -> str:
    return ", unchanged" if preprocessed.reused else ""


def _candidate(candidate: CandidateResult) -> str:
    return f"{candidate.algorithm}: {shown(candidate.metrics)}"


def _registered(registered: RegisterResult) -> list[Outcome]:
    certificate, verdict = registered.parity, registered.verdict
    return [
        Outcome(
            "register",
            f"parity: largest difference {certificate.max_abs_diff:.2g} on {certificate.rows:,} windows "
            f"(limit {certificate.limit:g})",
        ),
        Outcome(
            "register", f"version {registered.version} ({registered.algorithm}) is {verdict.alias}: {verdict.reason}"
        ),
    ]
