"""What a training gave: its candidates' figures, read back from their runs, ranked, and told to a person."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fieldloop.domain.bootstrap import LEVEL
from fieldloop.domain.metrics import gain
from fieldloop.domain.recipe import Metric, Recipe
from tasks.examples import Versions
from tasks.runs import VALIDATION, intervals_of
from tasks.tags import ALGORITHM, NOTES

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class CandidateResult:
    """One fitted candidate.

    Attributes:
        algorithm: its name in the recipe.
        run_id: MLflow run, which carries the graph.
        metrics: on the held-out windows, by the merged graph; mae and rmse in the target's unit.
        validation: on the windows that choose, learnt from the training windows alone.
        chosen_by: of these, the metric that decides.
        intervals: low and high end of each metric's interval, as far as it can be said.
        notes: what a person should know before believing them, see `tasks.notes`.
        rows: windows by use: train, validation, test, embargo, no_target.
        fit_s: seconds that fitting took.
    """

    algorithm: str
    run_id: str
    metrics: dict[Metric, float]
    validation: dict[Metric, float]
    chosen_by: float
    intervals: dict[Metric, tuple[float, float]]
    notes: tuple[str, ...]
    rows: dict[str, int]
    fit_s: float


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes:
        recipe: name of the recipe.
        versions: table versions that it read.
        run_id: parent run.
        run_url: its page.
        metric: the one that decides.
        best: the candidate that the recipe's metric prefers on the validation windows.
        candidates: all of them, best first.
    """

    recipe: str
    versions: Versions
    run_id: str
    run_url: str
    metric: Metric
    best: CandidateResult
    candidates: tuple[CandidateResult, ...]


def read_back(recipe: Recipe, run: "Run") -> CandidateResult:
    """Return the result that a candidate's run holds, as `tasks.runs.log_fitted` wrote it."""
    figures = run.data.metrics
    rows = {name.removeprefix("rows."): int(count) for name, count in figures.items() if name.startswith("rows.")}
    return CandidateResult(
        run.data.tags[ALGORITHM],
        run.info.run_id,
        {name: figures[name] for name in recipe.metrics()},
        {name: figures[f"{VALIDATION}{name}"] for name in recipe.metrics()},
        figures[f"{VALIDATION}{recipe.promotion.metric}"],
        intervals_of(recipe, figures),
        tuple(run.data.tags[NOTES].splitlines()),
        rows,
        figures["fit_s"],
    )


def ranked_by(results: Sequence[CandidateResult], metric: Metric) -> list[CandidateResult]:
    """Return candidates by a metric on the validation windows, best first; a tie keeps the recipe's order."""
    ranked: list[CandidateResult] = []
    for result in results:
        leads = (gain(metric, result.chosen_by, other.chosen_by) > 0 for other in ranked)
        ranked.insert(next((place for place, lead in enumerate(leads) if lead), len(ranked)), result)
    return ranked


def describe(result: TrainResult) -> str:
    """Return the training as Markdown for a person."""
    names = list(result.best.metrics)
    rows = [_row(entry, names, entry is result.best) for entry in result.candidates]
    used = result.best.rows
    return "\n".join(
        (
            f"[MLflow run]({result.run_url}) of recipe `{result.recipe}`, from `grid/{result.recipe}` version "
            f"{result.versions.grid} and `windows/{result.recipe}` version {result.versions.windows}.",
            "",
            f"| candidate | {result.metric}, choosing | {' | '.join(names)} | fit, s |",
            f"|---{'|---' * (len(names) + 2)}|",
            *rows,
            "",
            f"Learnt from {used['train']:,} windows, chosen by {used['validation']:,} others, judged on "
            f"{used['test']:,} held-out ones (in brackets where {LEVEL:.0%} of the draws of their blocks lie); "
            f"{used['embargo']:,} in the embargo or later and {used['no_target']:,} without a target served none.",
            *(f"\n**Note.** {note}" for note in result.best.notes),
        )
    )


def shown(metrics: Mapping[Metric, float]) -> str:
    """Return metrics in a line for a person."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _row(entry: CandidateResult, names: Sequence[Metric], best: bool) -> str:
    mark = "**" if best else ""
    figures = " | ".join(_with_interval(entry, name) for name in names)
    return f"| {mark}{entry.algorithm}{mark} | {entry.chosen_by:.4g} | {figures} | {entry.fit_s:.1f} |"


def _with_interval(entry: CandidateResult, name: Metric) -> str:
    figure = f"{entry.metrics[name]:.4g}"
    if name not in entry.intervals:
        return figure
    low, high = entry.intervals[name]
    return f"{figure} ({low:.4g} – {high:.4g})"
