"""What turns a learner's output into a prediction: thresholds from training windows, calibration from validation."""

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.head import Head
from fieldloop.domain.recipe import Candidate, Classifying
from fieldloop.domain.recipe.candidates import Novelty
from fieldloop.domain.recipe.target import Anomaly
from tasks.candidates.learner import Learner, Matrix
from tasks.materials import Materials

_LEAST = 1e-7  # as `fieldloop.domain.head` has it
_PENALTY = 1e-3  # keeps a calibration finite where the classes are told apart without a mistake


def head_of(materials: Materials, candidate: Candidate, learner: Learner, features: Matrix) -> Head:
    """Return the head of a learner that was fitted to `features`, float32 [N, F]."""
    kind = materials.problem.kind
    target = materials.recipe.target
    if isinstance(candidate, Novelty):
        return Head(kind, thresholds=tuple(candidate.limits.values()))
    if isinstance(target, Anomaly):
        return Head(kind, thresholds=thresholds(learner.raw(features), target.quantile))
    if isinstance(candidate, Classifying) and candidate.calibrated and materials.problem.classifies:
        slope, bias = calibration(learner.raw(materials.validation_features), materials.validation_target)
        return Head(kind, slope=slope, bias=bias)
    return Head(kind)


def thresholds(raw: Matrix, quantile: float) -> tuple[float, ...]:
    """Return a threshold a statistic, so that this share of the rows lies below all of them.

    Args:
        raw: float32 [N, K], each statistic of one sign, unusual where its size is large.
        quantile: the share.
    """
    sizes = np.abs(raw.astype(np.float64))
    each = np.maximum(np.quantile(sizes, quantile, axis=0), np.finfo(np.float32).tiny)
    together = max(float(np.quantile((sizes / each).max(axis=1), quantile)), np.finfo(np.float32).tiny)
    signs = np.where(raw.sum(axis=0) < 0, -1.0, 1.0)
    return tuple((signs * each * together).tolist())


def calibration(shares: Matrix, target: NDArray[np.float32]) -> tuple[float, tuple[float, ...]]:
    """Return slope and biases under which softmax(slope · ln p + bias) fits the classes that came true best.

    For two classes this is Platt's scaling of the log odds (Platt, 1999), for more vector scaling with one slope (Guo
    et al., 2017).

    Args:
        shares: float32 [M, K].
        target: [M] float32 codes.
    """
    from scipy.optimize import minimize

    logs = np.log(np.maximum(shares.astype(np.float64), _LEAST))
    hot = np.eye(shares.shape[1])[target.astype(np.int64)]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = parameters[0] * logs + parameters[1:]
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        found = powers / powers.sum(axis=1, keepdims=True)
        size = -np.mean(np.log(np.maximum((found * hot).sum(axis=1), np.finfo(np.float64).tiny)))
        error = (found - hot) / len(hot)
        slope = np.append((error * logs).sum(), error.sum(axis=0)) + 2 * _PENALTY * (parameters - start)
        return float(size + _PENALTY * np.square(parameters - start).sum()), slope

    start = np.append(1.0, np.zeros(shares.shape[1]))
    best = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return float(best[0]), tuple(best[1:].tolist())
