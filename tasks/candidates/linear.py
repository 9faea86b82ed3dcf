"""Linear and logistic regression on standardized features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe.candidates import ElasticNet, Logistic, Ridge
from tasks.candidates import scikit
from tasks.candidates.learner import Matrix, Problem, row_weights

_ROUNDS = 2_000  # of the solvers, at most


def fit(
    candidate: Ridge | ElasticNet | Logistic,
    problem: Problem,
    features: Matrix,
    target: NDArray[np.float32],
    seed: int,
) -> scikit.Fitted:
    """Fit coefficients to rows with [N] values or codes."""
    from sklearn.preprocessing import StandardScaler

    balanced = isinstance(candidate, Logistic) and candidate.weights == "balanced"
    weights = row_weights(target) if balanced else None
    steps = [scikit.medians(), StandardScaler(), _estimator(candidate, seed)]
    return scikit.fit(steps, problem, features, target, weights)


def _estimator(candidate: Ridge | ElasticNet | Logistic, seed: int) -> Any:
    from sklearn import linear_model

    match candidate:
        case Ridge():
            return linear_model.Ridge(candidate.penalty)
        case ElasticNet():
            return linear_model.ElasticNet(
                candidate.penalty, l1_ratio=candidate.absolute_share, max_iter=_ROUNDS, random_state=seed
            )
        case Logistic():
            return linear_model.LogisticRegression(C=1 / candidate.penalty, max_iter=_ROUNDS, random_state=seed)
