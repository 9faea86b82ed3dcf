"""One candidate, fitted: features by the one graph, the learner on the training windows alone, both merged.

train → fit → judged on validation, which chooses, and by which probabilities are calibrated
train and validation → fit again → the graph, judged on test, which nothing was chosen by
"""

import time
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import merge
from fieldloop.domain.head import Head
from fieldloop.domain.metrics import judge
from fieldloop.domain.recipe import Candidate, Metric, Recipe
from fieldloop.domain.recipe.target import Anomaly
from tasks import candidates
from tasks.candidates.learner import Matrix, fixed_threads
from tasks.examples import Examples
from tasks.heads import head_of
from tasks.materials import Materials
from tasks.matrix import apply

_SMALL_ROWS = 8_000  # windows of the estimate of what a random split would have shown
_SMALL_TREES = 40


@dataclass(frozen=True)
class Fitted:
    """A candidate with all that its run is going to carry.

    Attributes:
        candidate: with the settings that it was fitted with.
        materials: what it was fitted to.
        model: fitted to train and validation.
        graph: raw window to prediction.
        validation: metrics on the validation windows, fitted to the training windows alone.
        validation_predicted: float32 [M, P].
        test: [K] int64, windows that judge.
        predicted: float32 [K, P], by the graph.
        random_split: the metric that chooses as a small fit shows it on the recipe's split and on a random one.
        fit_s: seconds that the fits took.
    """

    candidate: Candidate
    materials: Materials
    model: candidates.Model
    graph: onnx.ModelProto
    validation: dict[Metric, float]
    validation_predicted: Matrix
    test: NDArray[np.int64]
    predicted: Matrix
    random_split: tuple[float, float]
    fit_s: float

    @property
    def recipe(self) -> Recipe:
        """The use case."""
        return self.materials.recipe

    @property
    def found(self) -> Examples:
        """The windows."""
        return self.materials.found

    @property
    def truth(self) -> NDArray[np.float32]:
        """[K] float32, targets of the test windows."""
        return self.found.target[self.test]


@fixed_threads()
def fit(candidate: Candidate, materials: Materials, seed: int) -> Fitted:
    """Fit on the training windows to choose by, then on all but the held-out ones; merge and run the graph on these.

    Raises:
        TrainingError: the candidate cannot be fitted.
    """
    recipe, found = materials.recipe, materials.found
    began = time.monotonic()
    first, predicted = try_out(candidate, materials, seed)
    model = _fit_to_all(candidate, materials, first.head, seed)
    fit_s = time.monotonic() - began
    width = len(materials.names)
    head = model.head.graph(max(materials.problem.classes, len(model.head.thresholds)))
    graph = merge(materials.half, candidates.convert(model, width), head, recipe.width)
    test = found.chosen("test")
    return Fitted(
        candidate,
        materials,
        model,
        graph,
        judge(recipe, materials.validation_target, predicted),
        predicted,
        test,
        apply(graph.SerializeToString(), found, test),
        random_split(candidate, materials, seed),
        fit_s,
    )


@fixed_threads()
def try_out(
    candidate: Candidate, materials: Materials, seed: int, share: float = 1.0
) -> tuple[candidates.Model, Matrix]:
    """Fit to a share of the training windows, spread evenly, and predict the validation windows.

    Returns:
        The model, and float32 [M, P].

    Raises:
        TrainingError: the candidate cannot be fitted.
    """
    number = len(materials.train)
    rows = np.arange(max(1, int(number * share))) * number // max(1, int(number * share))
    matrix, target = materials.train_features[rows], materials.train_target[rows]
    learner = candidates.fit(candidate, materials.problem, materials.names, matrix, target, seed)
    head = head_of(materials, candidate, learner, matrix)
    model = candidates.Model(learner, head)
    return model, model.predict(materials.validation_features)


def random_split(candidate: Candidate, materials: Materials, seed: int) -> tuple[float, float]:
    """Estimate what a random split would have shown: the metric on the recipe's own split, and on a random one.

    Both by a small version of the candidate, from as many windows: training windows alone are split at random.
    """
    small = _small(candidate)
    recipe, metric = materials.recipe, materials.recipe.promotion.metric
    lots = np.random.default_rng(seed).permutation(len(materials.train))
    rows = np.sort(lots[: min(_SMALL_ROWS, len(lots) * 4 // 5)])
    others = np.sort(lots[len(rows) :][:_SMALL_ROWS])
    matrix, target = materials.train_features, materials.train_target
    try:
        learner = candidates.fit(small, materials.problem, materials.names, matrix[rows], target[rows], seed)
    except TrainingError:  # a class so rare that the lot left it out: nothing can be said
        return float("nan"), float("nan")
    model = candidates.Model(learner, head_of(materials, small, learner, matrix[rows]))
    own = judge(recipe, materials.validation_target, model.predict(materials.validation_features))
    drawn = judge(recipe, target[others], model.predict(matrix[others]))
    return own[metric], drawn[metric]


def _fit_to_all(candidate: Candidate, materials: Materials, first: Head, seed: int) -> candidates.Model:
    """Fit to train and validation; a calibration stays the one that the validation windows gave."""
    matrix = np.concatenate([materials.train_features, materials.validation_features])
    target = np.concatenate([materials.train_target, materials.validation_target])
    learner = candidates.fit(candidate, materials.problem, materials.names, matrix, target, seed)
    anomalous = isinstance(materials.recipe.target, Anomaly)
    return candidates.Model(learner, head_of(materials, candidate, learner, matrix) if anomalous else first)


def _small(candidate: Candidate) -> Candidate:
    """The candidate with few trees, uncalibrated."""
    limits = {"trees": _SMALL_TREES}
    cut = {name: min(getattr(candidate, name), most) for name, most in limits.items() if hasattr(candidate, name)}
    plain = {"calibrated": False} if hasattr(candidate, "calibrated") else {}
    return candidate.model_copy(update=cut | plain)
