"""Search of a candidate's settings by Optuna: each trial a nested MLflow run, from which a killed search goes on.

    trials that are there → ask for settings → fit to a ninth, a third, all of the training windows → tell, log

A trial that lags behind after a ninth or a third of the windows is pruned. What the sampler draws follows from the
seed, the trial's number and the trials before, so that a search that was killed and goes on ends as if it had not been.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
import numpy as np

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.metrics import LOWER_IS_BETTER, judge
from fieldloop.domain.recipe import Candidate
from fieldloop.domain.recipe.candidates import Choice, Range
from tasks.fitting import try_out
from tasks.materials import Materials
from tasks.tags import SEARCH

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_RUNGS: Final = (1 / 9, 1 / 3, 1.0)  # shares of the training windows
_LEAST_ROWS: Final = 2_000  # windows below which a share says too little
_UNPRUNED: Final = 4  # trials that run to their end whatever they show
_TRIAL: Final = "fieldloop.trial"  # tag: the trial as JSON
_PAGE: Final = 1_000  # runs read at once, as many as a search may have

Progress = Callable[[int, int, float], None]
"""Is told how many trials are done, of how many, and the best metric so far."""


class Trial(msgspec.Struct, frozen=True):
    """A finished trial.

    Attributes:
        number: from 0.
        settings: those that were searched.
        steps: the metric after each share of the training windows; fewer where it was pruned.
        pruned: whether it was.
        seconds: what it took.
    """

    number: int
    settings: dict[str, Any]
    steps: list[float]
    pruned: bool
    seconds: float


class Trials:
    """The trials of one search, as MLflow keeps them."""

    def __init__(self, mlflow: "MlflowClient", experiment_id: str, run_id: str, content: str) -> None:
        """Take the run under which they hang, and the digest by which they are found again."""
        self._mlflow, self._experiment_id, self._run_id, self._content = mlflow, experiment_id, run_id, content

    def past(self) -> list[Trial]:
        """Return the trials that are there, in order, and hang them under this run."""
        found = self._mlflow.search_runs(
            [self._experiment_id],
            f"tags.`{SEARCH}` = '{self._content}' and attributes.status = 'FINISHED'",
            max_results=_PAGE,
        )
        for run in found:
            self._mlflow.set_tag(run.info.run_id, "mlflow.parentRunId", self._run_id)
        trials = {trial.number: trial for trial in (_decoded(run.data.tags[_TRIAL]) for run in found)}
        return [trials[number] for number in sorted(trials)]

    def add(self, trial: Trial, metric: str) -> None:
        """Log a trial."""
        from mlflow.entities import Metric, Param, RunTag

        tags = {"mlflow.parentRunId": self._run_id, SEARCH: self._content}
        name = f"trial {trial.number}{' (pruned)' if trial.pruned else ''}"
        run_id = self._mlflow.create_run(self._experiment_id, tags=tags, run_name=name).info.run_id
        now_ms = time.time_ns() // 1_000_000
        self._mlflow.log_batch(
            run_id,
            [Metric(f"validation.{metric}", value, now_ms, step) for step, value in enumerate(trial.steps)],
            [Param(setting, str(value)) for setting, value in trial.settings.items()],
            [RunTag(_TRIAL, msgspec.json.encode(trial).decode())],
        )
        self._mlflow.set_terminated(run_id)


class ShownProgress:
    """Shows a search in the Prefect UI, as a progress bar of the task's run."""

    def __init__(self, algorithm: str) -> None:
        """Take the name under which it is shown."""
        self._algorithm = algorithm
        self._artifact: UUID | None = None

    def __call__(self, done: int, of: int, best: float) -> None:
        """Move the bar."""
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.logging import get_run_logger

        percent, text = 100 * done / of, f"{self._algorithm}: {done} of {of} trials, best {best:.5g}"
        get_run_logger().info(text)
        if self._artifact is None:
            key = f"search-{self._algorithm.replace('_', '-')}"
            made = create_progress_artifact(percent, key=key, description=text)
            self._artifact = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self._artifact, percent, description=text)


def in_silence(_done: int, _of: int, _best: float) -> None:
    """Show nothing."""


def search(candidate: Candidate, materials: Materials, seed: int, trials: Trials, progress: Progress) -> Candidate:
    """Return the candidate with the settings that did best on the validation windows; as it is without a space.

    Raises:
        TrainingError: no trial gave a figure.
    """
    if not candidate.search:
        return candidate
    budget, study, spent = materials.recipe.search, _study(materials), 0.0
    for trial in trials.past()[: budget.trials]:
        study.add_trial(_frozen(candidate, trial))
        spent += trial.seconds
    while len(study.trials) < budget.trials and (budget.seconds is None or spent < budget.seconds):
        trial = _run(study, candidate, materials, seed)
        trials.add(trial, materials.recipe.promotion.metric)
        spent += trial.seconds
        progress(len(study.trials), budget.trials, _best(study))
    if np.isnan(_best(study)):
        raise TrainingError(f"{candidate.algorithm}: no trial of {len(study.trials)} gave a figure to choose by")
    return candidate.model_copy(update=study.best_trial.params)


def _run(study: "Study", candidate: Candidate, materials: Materials, seed: int) -> Trial:
    """Ask for settings, fit with them, tell what came out."""
    import optuna

    began, number = time.monotonic(), len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=_draw(seed, number))
    if not number:
        _begin_with_own(study, candidate)
    asked = study.ask(_spaces(candidate))
    tried = candidate.model_copy(update=asked.params)
    steps: list[float] = []
    pruned = False
    for share in _RUNGS if len(materials.train) * _RUNGS[0] >= _LEAST_ROWS else _RUNGS[-1:]:
        _, predicted = try_out(tried, materials, seed, share)
        figures = judge(materials.recipe, materials.validation_target, predicted)
        steps.append(figures[materials.recipe.promotion.metric])
        asked.report(steps[-1], len(steps) - 1)
        pruned = share < 1 and bool(asked.should_prune())
        if pruned:
            break
    trial = Trial(number, asked.params, steps, pruned, time.monotonic() - began)
    state = _state(trial)
    study.tell(asked, steps[-1] if state == optuna.trial.TrialState.COMPLETE else None, state)
    return trial


def _study(materials: Materials) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lower = materials.recipe.promotion.metric in LOWER_IS_BETTER
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED)
    return optuna.create_study(direction="minimize" if lower else "maximize", pruner=pruner)


def _spaces(candidate: Candidate) -> "dict[str, BaseDistribution]":
    """The settings' ranges in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    spaces: dict[str, BaseDistribution] = {}
    for name, space in candidate.search.items():
        whole = candidate.__class__.model_fields[name].annotation is int
        if isinstance(space, Choice):
            spaces[name] = CategoricalDistribution(space.choices)
        elif whole:
            spaces[name] = IntDistribution(int(space.low), int(space.high), log=space.log)
        else:
            spaces[name] = FloatDistribution(space.low, space.high, log=space.log)
    return spaces


def _begin_with_own(study: "Study", candidate: Candidate) -> None:
    """Let the first trial be the recipe's own settings, as far as the ranges hold them."""
    own = {name: getattr(candidate, name) for name in candidate.search}
    within = {name: value for name, value in own.items() if _holds(candidate.search[name], value)}
    if within:
        study.enqueue_trial(within)


def _holds(space: Range | Choice, value: Any) -> bool:
    return value in space.choices if isinstance(space, Choice) else bool(space.low <= value <= space.high)


def _frozen(candidate: Candidate, trial: Trial) -> "FrozenTrial":
    """A past trial in Optuna's terms."""
    import optuna

    state = _state(trial)
    return optuna.trial.create_trial(
        state=state,
        params=trial.settings,
        distributions=_spaces(candidate),
        intermediate_values=dict(enumerate(trial.steps)),
        value=trial.steps[-1] if state == optuna.trial.TrialState.COMPLETE else None,
    )


def _state(trial: Trial) -> Any:
    from optuna.trial import TrialState

    if trial.pruned:
        return TrialState.PRUNED
    return TrialState.FAIL if np.isnan(trial.steps[-1]) else TrialState.COMPLETE


def _best(study: "Study") -> float:
    try:
        return float(study.best_value)
    except ValueError:  # no trial is complete yet
        return float("nan")


def _draw(seed: int, number: int) -> int:
    """A seed of a trial's own."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _decoded(text: str) -> Trial:
    return msgspec.json.decode(text, type=Trial)
