"""One candidate, fitted: features by the one graph, the model on the training windows alone, both merged."""

import time
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import feature_graph, merge
from fieldloop.domain.recipe import Candidate, Recipe
from tasks import candidates
from tasks.examples import Examples, apply, features, spread_out


@dataclass(frozen=True)
class Fitted:
    """A candidate with all that its run is going to carry."""

    recipe: Recipe
    candidate: Candidate
    found: Examples
    names: tuple[str, ...]
    model: candidates.Model
    graph: onnx.ModelProto
    test: NDArray[np.int64]
    predicted: NDArray[np.float32]
    canary: NDArray[np.int64]
    fit_s: float


def fit(recipe: Recipe, candidate: Candidate, found: Examples, seed: int) -> Fitted:
    """Fit on the training windows alone, merge the graph and run it on the held-out windows.

    Raises:
        TrainingError: one side of the split is empty, or the candidate cannot be fitted.
    """
    feature_half, names = feature_graph(recipe)
    train, test = found.chosen("train"), found.chosen("test")
    if not len(train) or not len(test):
        raise TrainingError(f"{recipe.name}: expected windows to train and to test on, got {found.counts()}")
    learnt_from = features(found, train)
    began = time.monotonic()
    model = candidates.fit(candidate, learnt_from, found.target[train], seed)
    fit_s = time.monotonic() - began
    graph = merge(feature_half, candidates.convert(model, len(names)))
    predicted = apply(graph.SerializeToString(), found, test)[:, 0]
    canary = test[spread_out(features(found, test), recipe.release.canary_rows)]
    return Fitted(recipe, candidate, found, names, model, graph, test, predicted, canary, fit_s)
