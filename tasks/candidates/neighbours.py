"""The mean of the most alike training windows."""

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe.candidates import Neighbours
from tasks.candidates import scikit
from tasks.candidates.learner import Matrix, Problem


def fit(candidate: Neighbours, problem: Problem, features: Matrix, target: NDArray[np.float32]) -> scikit.Fitted:
    """Keep `rows` of the rows, spread evenly, and compare with all of them."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
    from sklearn.preprocessing import StandardScaler

    rows = _kept(candidate, problem, target)
    kind = KNeighborsClassifier if problem.classifies else KNeighborsRegressor
    steps = [
        scikit.medians(),
        StandardScaler(),
        kind(min(candidate.neighbours, len(rows)), algorithm="brute"),  # a tree would be of a type we do not trust
    ]
    return scikit.fit(steps, problem, features[rows], target[rows])


def _kept(candidate: Neighbours, problem: Problem, target: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows spread evenly, and one of each class whatever happens."""
    number = min(candidate.rows, len(target))
    rows = np.arange(number) * len(target) // number
    first = np.unique(target, return_index=True)[1] if problem.classifies else rows[:0]
    return np.union1d(rows, first)
