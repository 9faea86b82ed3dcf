"""How good predictions are, and when a challenger is better than the champion."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe import Metric, Promotion, Recipe
from fieldloop.domain.recipe.target import Anomaly, Class

LOWER_IS_BETTER: Final[frozenset[Metric]] = frozenset({"mae", "rmse", "log_loss", "alarm_excess", "alarm_share"})
_LEAST: Final = 1e-7  # probability below which a miss costs no more

Floats = NDArray[np.float64]


def judge(recipe: Recipe, truth: NDArray[np.float32], predicted: NDArray[np.float32]) -> dict[Metric, float]:
    """Return the figures of a recipe's kind of target.

    Args:
        recipe: what is predicted.
        truth: [N] float32, N > 0; for anomalies NaN where nobody knows.
        predicted: [N, P] float32, as `Head` gives them.
    """
    match recipe.target:
        case Class():
            return classification(truth, probabilities(predicted))
        case Anomaly(quantile=quantile):
            return anomaly(truth, predicted[:, 0], quantile)
    return regression(truth, predicted[:, 0])


def regression(truth: NDArray[np.float32], predicted: NDArray[np.float32]) -> dict[Metric, float]:
    """Return mean absolute error and root mean square error (unit of the target), and R².

    Args:
        truth: [N] float32, N > 0.
        predicted: [N] float32.
    """
    truth64 = truth.astype(np.float64)
    error = predicted.astype(np.float64) - truth64
    squares = float(np.mean(np.square(error)))
    variance = float(np.var(truth64))
    r2 = 1 - squares / variance if variance else float("-inf" if squares else 1)
    return {"mae": float(np.mean(np.abs(error))), "rmse": squares**0.5, "r2": r2}


def probabilities(predicted: NDArray[np.float32]) -> Floats:
    """Return [N, K] probabilities of the classes from predictions [N, 1] (of the second class) or [N, 1 + K]."""
    if predicted.shape[1] > 1:
        return predicted[:, 1:].astype(np.float64)
    second = predicted[:, 0].astype(np.float64)
    return np.stack([1 - second, second], axis=1)


def classification(truth: NDArray[np.float32], shares: Floats) -> dict[Metric, float]:
    """Return the figures of a classifier.

    `f1`, `balanced_accuracy`, `auc` and `average_precision` are means over the classes that occur; with two classes
    the last two and `f1` are those of the second. NaN where only one class occurs.

    Args:
        truth: [N] float32, codes.
        shares: [N, K] float64.
    """
    codes = truth.astype(np.int64)
    answer = shares.argmax(axis=1)
    there = np.unique(codes)
    counted = [1] if shares.shape[1] == 2 else there.tolist()
    own = np.clip(shares[np.arange(len(codes)), codes], _LEAST, 1)
    return {
        "log_loss": float(-np.mean(np.log(own))),
        "accuracy": float(np.mean(answer == codes)),
        "balanced_accuracy": float(np.mean([np.mean(answer[codes == code] == code) for code in there])),
        "f1": _mean([_f1(codes == code, answer == code) for code in counted]),
        "auc": _mean([auc(codes == code, shares[:, code]) for code in counted]),
        "average_precision": _mean([average_precision(codes == code, shares[:, code]) for code in counted]),
    }


def anomaly(truth: NDArray[np.float32], score: NDArray[np.float32], quantile: float) -> dict[Metric, float]:
    """Return the share of alarms, its distance from what the threshold promised, and where labels are known the rest.

    Args:
        truth: [N] float32, 1 where anomalous, 0 where not, NaN where nobody knows.
        score: [N] float32, an alarm from 1 on.
        quantile: share of the training windows below the threshold.
    """
    alarms = score >= 1
    share = float(np.mean(alarms))
    figures: dict[Metric, float] = {"alarm_share": share, "alarm_excess": abs(share - (1 - quantile))}
    known = ~np.isnan(truth)
    is_so, alarms, ranked = truth[known] > 0, alarms[known], score[known].astype(np.float64)
    hits = float(np.count_nonzero(is_so & alarms))
    figures["precision"] = hits / np.count_nonzero(alarms) if alarms.any() else float("nan")
    figures["recall"] = hits / np.count_nonzero(is_so) if is_so.any() else float("nan")
    figures["f1"] = _f1(is_so, alarms) if is_so.any() else float("nan")
    figures["auc"] = auc(is_so, ranked)
    figures["average_precision"] = average_precision(is_so, ranked)
    return figures


def auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return the chance that a positive scores above a negative (ties count half); NaN without both.

    Args:
        positive: [N] bool.
        score: [N] float64.
    """
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # of equal scores the middle one
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return the mean precision over the positives, by falling score, equal scores taken at once; NaN without any.

    Args:
        positive: [N] bool.
        score: [N] float64.
    """
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # the last one of equal scores
    gained = np.diff(hits[last], prepend=0)
    return float(np.sum(gained * hits[last] / (last + 1)) / hits[-1])


def better(challenger: float, champion: float, rule: Promotion) -> bool:
    """Tell whether a challenger's metric beats the champion's by more than the rule's margin, a share of it."""
    gain = champion - challenger if rule.metric in LOWER_IS_BETTER else challenger - champion
    return gain > rule.margin * abs(champion)


def _f1(truth: NDArray[np.bool_], answer: NDArray[np.bool_]) -> float:
    both = np.count_nonzero(truth) + np.count_nonzero(answer)
    return float(2 * np.count_nonzero(truth & answer) / both) if both else float("nan")


def _mean(figures: list[float]) -> float:
    known = [figure for figure in figures if not np.isnan(figure)]
    return float(np.mean(known)) if known else float("nan")
