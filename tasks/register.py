"""Register: prove parity, register the version, and let it win the champion's place on the same held-out windows.

    pick the run → certify parity → register as challenger → compare with the champion → promote or leave it

A challenger that does not win keeps the alias `challenger` until another takes it; one that wins is `champion` alone.
"""

from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from prefect import task

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.parity import Certificate, certify, require
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.stores import registry
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.branches import closest
from tasks.candidates import Model, file_names, problem, restore
from tasks.card import model_card
from tasks.challenge import Verdict, examples_of, figures, judge, settle
from tasks.examples import Examples, spread_out
from tasks.matrix import apply, features, session_of
from tasks.runs import NATIVE, runtime
from tasks.tags import ALGORITHM, BEST_RUN

PARITY: Final = "release/parity.json"
ROWS_ALONE: Final = 1_000  # windows that are also run one at a time
_NEAR: Final = 4  # one in so many is compared since a tree nearly branches the other way there


@dataclass(frozen=True)
class Proved:
    """A run whose graph has passed the recipe's parity limit.

    Attributes:
        recipe: name of the recipe.
        run_id: the MLflow run.
        certificate: as logged under `release/parity.json`.
    """

    recipe: str
    run_id: str
    certificate: Certificate


@dataclass(frozen=True)
class RegisterResult:
    """What a registration gave.

    Attributes:
        model: registered model, the recipe's name.
        version: its number.
        run_id: the MLflow run behind it.
        algorithm: its name in the recipe.
        url: page of the version.
        parity: the certificate.
        verdict: champion or challenger, and why, see `tasks.challenge`.
    """

    model: str
    version: int
    run_id: str
    algorithm: str
    url: str
    parity: Certificate
    verdict: Verdict


@task(name="prove parity", retries=1, retry_delay_seconds=10, timeout_seconds=1800)
def prove_parity(recipe: str, run_id: str | None) -> Proved:
    """Compare graph and native model on held-out windows."""
    settings = Settings()
    return prove(settings, recipe, run_id or newest_best_run(settings, recipe))


@task(name="register version", retries=2, retry_delay_seconds=5, timeout_seconds=300)
def register_version(proved: Proved) -> int:
    """Register the run's graph; a run that is registered already keeps its version."""
    return enter(Settings(), proved).version


@task(name="challenge champion", retries=1, retry_delay_seconds=10, timeout_seconds=1800)
def challenge_champion(proved: Proved, version: int) -> Verdict:
    """Compare the version with the champion on the same held-out windows."""
    settings = Settings()
    return judge(settings, registry.version(settings, proved.recipe, version))


@task(name="settle champion", retries=2, retry_delay_seconds=5, timeout_seconds=300)
def settle_champion(proved: Proved, version: int, verdict: Verdict) -> RegisterResult:
    """Move the aliases as the verdict says, and write the model card."""
    return conclude(Settings(), proved, version, verdict)


def newest_best_run(settings: Settings, recipe: str) -> str:
    """Return the best candidate's run of the newest finished training.

    Raises:
        TrainingError: the recipe was never trained.
    """
    mlflow = registry.client(settings)
    experiment = mlflow.get_experiment_by_name(recipe)
    if experiment is not None:
        found = mlflow.search_runs(
            [experiment.experiment_id],
            f"tags.`{BEST_RUN}` != '' and attributes.status = 'FINISHED'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if found:
            return str(found[0].data.tags[BEST_RUN])
    raise TrainingError(f"recipe {recipe}: no finished training in MLflow; run the flow `train` first")


def prove(settings: Settings, recipe_name: str, run_id: str) -> Proved:
    """Compare a run's graph with its native model on held-out windows, and log the certificate.

    Raises:
        ParityError: they differ by more than the recipe's limit; the certificate is logged all the same.
        StoreError: the run does not have what a candidate's run has.
    """
    recipe = load_recipe(settings.root, recipe_name)
    tags = _tags(settings, run_id)
    certificate = _compare(settings, recipe, run_id, examples_of(settings, recipe, tags))
    registry.client(settings).log_text(run_id, msgspec.json.encode(certificate).decode(), PARITY)
    require(certificate)
    return Proved(recipe_name, run_id, certificate)


def enter(settings: Settings, proved: Proved) -> ModelVersion:
    """Register the proved run; what is new enters as challenger."""
    tags = {key: value for key, value in _tags(settings, proved.run_id).items() if not key.startswith("mlflow.")}
    figures = {
        "parity.max_abs_diff": f"{proved.certificate.max_abs_diff:g}",
        "parity.rows": str(proved.certificate.rows),
    }
    entered = registry.register(settings, proved.recipe, proved.run_id, {**tags, **figures})
    if "champion" not in entered.aliases:
        registry.point(settings, "challenger", entered)
    return entered


def challenge(settings: Settings, proved: Proved, number: int) -> RegisterResult:
    """Compare the version with the champion, and do what follows, asking nobody."""
    version = registry.version(settings, proved.recipe, number)
    return conclude(settings, proved, number, judge(settings, version))


def conclude(settings: Settings, proved: Proved, number: int, verdict: Verdict) -> RegisterResult:
    """Move the aliases as a verdict says, and describe the version."""
    version = registry.version(settings, proved.recipe, number)
    settle(settings, version, verdict)
    url, algorithm = registry.version_url(settings, version), version.tags[ALGORITHM]
    registry.describe(settings, version, model_card(settings, version, proved.certificate, verdict))
    return RegisterResult(version.name, number, proved.run_id, algorithm, url, proved.certificate, verdict)


def describe(result: RegisterResult) -> str:
    """Return the registration as Markdown for a person."""
    parity, verdict = result.parity, result.verdict
    return "\n".join(
        (
            f"[{result.model} version {result.version}]({result.url}) ({result.algorithm}) is **{verdict.alias}**: "
            f"{verdict.reason}.",
            "",
            f"| held-out windows | version {result.version} | "
            f"{'no champion before' if verdict.champion is None else f'champion {verdict.champion}'} |",
            "|---|---:|---:|",
            *figures(verdict),
            "",
            f"Parity: graph and native model differ by at most {parity.max_abs_diff:g} (limit {parity.limit:g}) on "
            f"{parity.rows:,} held-out windows, {parity.rows_with_gaps:,} of them with gaps and "
            f"{parity.rows_at_branches:,} where a tree nearly branches the other way; of {parity.rows_alone:,} run one "
            f"at a time {parity.rows_alone_exact:,} gave the same bits as in batch.",
        )
    )


def _compare(settings: Settings, recipe: Recipe, run_id: str, found: Examples) -> Certificate:
    """Run graph and native model over held-out windows."""
    test = found.chosen("test")
    held_out = features(found, test)
    graph = registry.run_graph(settings, run_id)
    near = closest(graph, held_out, recipe.parity.rows // _NEAR)
    rest = np.setdiff1d(np.arange(len(test)), near)
    rows = np.sort(np.append(near, rest[spread_out(held_out[rest], recipe.parity.rows - len(near))]))
    chosen, held_out = test[rows], held_out[rows]
    native = _native(settings, recipe, run_id).predict(held_out)
    gaps = int(np.count_nonzero(np.isnan(held_out).any(axis=1)))
    batch = apply(graph, found, chosen)
    some = np.arange(0, len(chosen), max(1, len(chosen) // ROWS_ALONE))
    alone = _alone(graph, found, chosen[some])
    return certify(native, batch, some, alone, gaps, recipe.parity.limit, runtime(), len(near))


def _alone(graph: bytes, found: Examples, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """Predictions for windows one at a time on one thread, as a gateway runs them, float32 [K, P]."""
    session = session_of(graph)
    answers = [session.run(None, {"window": window[None]})[0] for window in found.windows(chosen)]
    return np.concatenate([np.zeros((0, found.recipe.width), dtype=np.float32), *answers])


def _native(settings: Settings, recipe: Recipe, run_id: str) -> Model:
    """The model in its own library's format."""
    names = file_names(_tags(settings, run_id)[ALGORITHM])
    files = {name: registry.run_artifact(settings, run_id, f"{NATIVE}/{name}") for name in names}
    return restore(problem(recipe), files)


def _tags(settings: Settings, run_id: str) -> dict[str, str]:
    """The tags of a candidate's run.

    Raises:
        TrainingError: it is not one.
    """
    tags = registry.run_tags(settings, run_id)
    if ALGORITHM not in tags:
        raise TrainingError(
            f"MLflow run {run_id}: expected the run of a candidate, got another; give a child of a training"
        )
    return tags
