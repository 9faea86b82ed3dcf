"""Linear and logistic regression, and linear discriminants, on standardized features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe.candidates import ElasticNet, LinearDiscriminant, Logistic, Ridge
from tasks.candidates import scikit
from tasks.candidates.learner import Matrix, Problem, row_weights

_ROUNDS = 2_000  # of the solvers, at most


def fit(
    candidate: Ridge | ElasticNet | Logistic | LinearDiscriminant,
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
    fitted = scikit.fit(steps, problem, features, target, weights)
    if isinstance(candidate, LinearDiscriminant):
        name, discriminant = fitted.pipeline.steps[-1]
        fitted.pipeline.steps[-1] = name, _as_logistic(discriminant)
    return fitted


def _estimator(candidate: Ridge | ElasticNet | Logistic | LinearDiscriminant, seed: int) -> Any:
    from sklearn import discriminant_analysis, linear_model

    match candidate:
        case Ridge():
            return linear_model.Ridge(candidate.penalty)
        case ElasticNet():
            return linear_model.ElasticNet(
                candidate.penalty, l1_ratio=candidate.absolute_share, max_iter=_ROUNDS, random_state=seed
            )
        case Logistic():
            return linear_model.LogisticRegression(C=1 / candidate.penalty, max_iter=_ROUNDS, random_state=seed)
        case LinearDiscriminant(shrinkage=0):
            return discriminant_analysis.LinearDiscriminantAnalysis()
        case LinearDiscriminant():
            return discriminant_analysis.LinearDiscriminantAnalysis(solver="lsqr", shrinkage=candidate.shrinkage)


def _as_logistic(discriminant: Any) -> Any:
    """Return the logistic regression of the same function: skl2onnx doubles a discriminant's scores of two classes."""
    from sklearn.linear_model import LogisticRegression

    logistic = LogisticRegression()
    logistic.classes_, logistic.n_features_in_ = discriminant.classes_, discriminant.coef_.shape[1]
    logistic.coef_, logistic.intercept_ = discriminant.coef_, discriminant.intercept_
    return logistic
