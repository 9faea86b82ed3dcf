"""Trees of scikit-learn: forests, and boosting over histograms."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe.candidates import ExtraTrees, HistogramBoosting, IsolationForest, RandomForest
from tasks.candidates import scikit
from tasks.candidates.learner import Matrix, Problem, let_threads_sleep, row_weights
from tasks.matrix import THREADS


def fit(
    candidate: RandomForest | ExtraTrees | HistogramBoosting,
    problem: Problem,
    features: Matrix,
    target: NDArray[np.float32],
    seed: int,
) -> scikit.Fitted:
    """Fit trees to rows with [N] values or codes."""
    steps = (
        [_histogram(candidate, problem, seed)]
        if isinstance(candidate, HistogramBoosting)
        else [scikit.medians(), _forest(candidate, problem, seed)]
    )
    weights = row_weights(target) if problem.classifies and candidate.weights == "balanced" else None
    return scikit.fit(steps, problem, features, target, weights)


def fit_isolation(candidate: IsolationForest, problem: Problem, features: Matrix, seed: int) -> scikit.Fitted:
    """Fit random cuts to rows."""
    from sklearn.ensemble import IsolationForest as Isolation

    forest = Isolation(
        n_estimators=candidate.trees,
        max_samples=min(candidate.rows, len(features)),
        max_features=candidate.feature_share,
        n_jobs=THREADS,
        random_state=seed,
    )
    return scikit.fit([scikit.medians(), forest], problem, features, None)


def _forest(candidate: RandomForest | ExtraTrees, problem: Problem, seed: int) -> Any:
    from sklearn import ensemble

    extra = isinstance(candidate, ExtraTrees)
    if problem.classifies:
        kind = ensemble.ExtraTreesClassifier if extra else ensemble.RandomForestClassifier
    else:
        kind = ensemble.ExtraTreesRegressor if extra else ensemble.RandomForestRegressor
    return kind(
        candidate.trees,
        max_leaf_nodes=candidate.leaves,
        max_features=candidate.feature_share,
        min_samples_leaf=candidate.least_rows,
        n_jobs=THREADS,
        random_state=seed,
    )


def _histogram(candidate: HistogramBoosting, problem: Problem, seed: int) -> Any:
    let_threads_sleep()
    from sklearn import ensemble

    kind = ensemble.HistGradientBoostingClassifier if problem.classifies else ensemble.HistGradientBoostingRegressor
    return kind(
        max_iter=candidate.trees,
        max_leaf_nodes=candidate.leaves,
        learning_rate=candidate.learning_rate,
        min_samples_leaf=candidate.least_rows,
        l2_regularization=candidate.penalty,
        early_stopping=False,
        random_state=seed,
    )
