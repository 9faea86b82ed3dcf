"""How good predictions are: figures of a kind of target, from counts and sums that add up over groups of windows.

    windows → tally (a row a group) → any weights of the groups → figures

`judge` has one group of all windows; `domain.bootstrap` draws groups again and again without looking at windows anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe import Metric, Recipe
from fieldloop.domain.recipe.target import Anomaly, Class

LOWER_IS_BETTER: Final[frozenset[Metric]] = frozenset({"mae", "rmse", "log_loss", "alarm_excess", "alarm_share"})
_LEAST: Final = 1e-7  # probability below which a miss costs no more

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Figure = TypeVar("Figure", float, Floats)


@dataclass(frozen=True)
class Tally:
    """What figures follow from, a row a group of windows.

    Attributes:
        recipe: what is predicted.
        sums: [G, S] float64, see the `_..._sums` of each kind of target.
        ranks: [G, K, 2, B] float64: for each class that is ranked how many windows without and with it lie in each bin
            of its score, ascending; K is 0 for numbers.
    """

    recipe: Recipe
    sums: Floats
    ranks: Floats

    def weighted(self, weights: Floats) -> "Tally":
        """Return the tally of W sums of groups, by their weights, [W, G] float64."""
        return Tally(self.recipe, weights @ self.sums, np.tensordot(weights, self.ranks, axes=1))

    def figures(self) -> dict[Metric, Floats]:
        """Return each figure, [G]; NaN where a group cannot say."""
        with np.errstate(divide="ignore", invalid="ignore"):
            match self.recipe.target:
                case Class():
                    return _classification(self.sums, self.ranks)
                case Anomaly(quantile=quantile):
                    return _anomaly(self.sums, self.ranks, quantile)
            return _regression(self.sums)


def judge(recipe: Recipe, truth: NDArray[np.float32], predicted: NDArray[np.float32]) -> dict[Metric, float]:
    """Return the figures of a recipe's kind of target.

    For numbers mean absolute error and root mean square error (unit of the target), and R². For classes `f1`,
    `balanced_accuracy`, `auc` and `average_precision` are means over the classes that occur; with two classes the last
    two and `f1` are those of the second. For anomalies the share of alarms, its distance from what the threshold
    promised, and where labels are known the rest. NaN where nothing can be said, as of a ranking with one class only.

    Args:
        recipe: what is predicted.
        truth: [N] float32, N > 0; for anomalies 1 where anomalous, 0 where not, NaN where nobody knows.
        predicted: [N, P] float32, as `Head` gives them.
    """
    whole = tally(recipe, truth, predicted, np.zeros(len(truth), dtype=np.int64), 1)
    return {name: float(values[0]) for name, values in whole.figures().items()}


def judge_each(
    recipe: Recipe, truth: NDArray[np.float32], predicted: NDArray[np.float32], group: NDArray[np.integer]
) -> dict[int, dict[Metric, float]]:
    """Return the figures of each group that has windows, by its code, ascending.

    Args:
        recipe: what is predicted.
        truth: [N] float32, as `judge` takes it.
        predicted: [N, P] float32.
        group: [N] the group of each window.
    """
    order = np.argsort(group, kind="stable")
    codes, first = np.unique(group[order], return_index=True)
    parts = np.split(order, first[1:]) if len(codes) else []
    return {int(code): judge(recipe, truth[rows], predicted[rows]) for code, rows in zip(codes, parts, strict=True)}


def tally(
    recipe: Recipe,
    truth: NDArray[np.float32],
    predicted: NDArray[np.float32],
    group: Ints,
    groups: int,
    bins: int | None = None,
) -> Tally:
    """Count and add up windows by group.

    Args:
        recipe: what is predicted.
        truth: [N] float32, as `judge` takes it.
        predicted: [N, P] float32.
        group: [N] int64, the group of each window.
        groups: G.
        bins: most bins of a score, by its quantiles; None gives each different score its own, which is exact.
    """
    match recipe.target:
        case Class():
            shares, codes = probabilities(predicted), truth.astype(np.int64)
            ranked = [1] if shares.shape[1] == 2 else range(shares.shape[1])
            ranks = [_ranks(codes == code, shares[:, code], group, groups, bins) for code in ranked]
            return Tally(recipe, _class_sums(codes, shares, group, groups), _stacked(ranks))
        case Anomaly():
            known, score = ~np.isnan(truth), predicted[:, 0].astype(np.float64)
            rank = _ranks(truth[known] > 0, score[known], group[known], groups, bins)
            return Tally(recipe, _alarm_sums(truth, score, group, groups), _stacked([rank]))
    return Tally(recipe, _number_sums(truth, predicted[:, 0], group, groups), np.zeros((groups, 0, 2, 0)))


def probabilities(predicted: NDArray[np.float32]) -> Floats:
    """Return [N, K] probabilities of the classes from predictions [N, 1] (of the second class) or [N, 1 + K]."""
    if predicted.shape[1] > 1:
        return predicted[:, 1:].astype(np.float64)
    second = predicted[:, 0].astype(np.float64)
    return np.stack([1 - second, second], axis=1)


def auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Return the chance that a positive scores above a negative (ties count half); NaN without both.

    Args:
        positive: [N] bool.
        score: [N] float64.
    """
    return float(_auc(_ranks(positive, score, np.zeros(len(score), dtype=np.int64), 1, None))[0])


def gain(metric: Metric, first: Figure, second: Figure) -> Figure:
    """Return by how much the first figure (a number or an array) is better than the second, positive where it is."""
    return second - first if metric in LOWER_IS_BETTER else first - second


def _number_sums(truth: NDArray[np.float32], answer: NDArray[np.float32], group: Ints, groups: int) -> Floats:
    """[G, 5]: windows, sizes and squares of errors, truth and its squares, both about the mean of all."""
    centred = truth.astype(np.float64)
    error = answer.astype(np.float64) - centred
    centred = centred - centred.mean()
    columns = (np.ones(len(truth)), np.abs(error), np.square(error), centred, np.square(centred))
    return np.stack([np.bincount(group, column, groups) for column in columns], axis=1)


def _regression(sums: Floats) -> dict[Metric, Floats]:
    means = sums[:, 1:] / sums[:, :1]
    variance = np.maximum(means[:, 3] - np.square(means[:, 2]), 0)
    constant = np.where(means[:, 1] > 0, -np.inf, np.where(sums[:, 0] > 0, 1.0, np.nan))
    r2 = np.where(variance > 0, 1 - means[:, 1] / variance, constant)
    return {"mae": means[:, 0], "rmse": np.sqrt(means[:, 1]), "r2": r2}


def _class_sums(codes: Ints, shares: Floats, group: Ints, groups: int) -> Floats:
    """[G, 1 + K * K]: what the true classes' shares cost, and windows by true and answered class."""
    classes = shares.shape[1]
    own = np.clip(shares[np.arange(len(codes)), codes], _LEAST, 1)
    cells = (group * classes + codes) * classes + shares.argmax(axis=1)
    confusion = np.bincount(cells, minlength=groups * classes**2).reshape(groups, classes**2)
    return np.column_stack([np.bincount(group, -np.log(own), groups), confusion])


def _classification(sums: Floats, ranks: Floats) -> dict[Metric, Floats]:
    classes = round((sums.shape[1] - 1) ** 0.5)
    confusion = sums[:, 1:].reshape(-1, classes, classes)
    right, truly = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    answered, number = confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    f1 = np.where(truly > 0, 2 * right / (truly + answered), np.nan)
    if classes == 2:
        f1 = (2 * right / (truly + answered))[:, 1:]
    return {
        "log_loss": sums[:, 0] / number,
        "accuracy": right.sum(axis=1) / number,
        "balanced_accuracy": _mean(np.where(truly > 0, right / truly, np.nan)),
        "f1": _mean(f1),
        **_ranking(ranks),
    }


def _alarm_sums(truth: NDArray[np.float32], score: Floats, group: Ints, groups: int) -> Floats:
    """[G, 5]: windows and alarms; and where the truth is known alarms, anomalies, and those of them with an alarm."""
    alarm, known, anomalous = score >= 1, ~np.isnan(truth), truth > 0
    columns = (np.ones(len(score)), alarm, alarm & known, anomalous, alarm & anomalous)
    return np.stack([np.bincount(group, column, groups) for column in columns], axis=1)


def _anomaly(sums: Floats, ranks: Floats, quantile: float) -> dict[Metric, Floats]:
    number, alarms, known_alarms, anomalies, hits = sums.T
    share = alarms / number
    f1 = np.where(anomalies > 0, 2 * hits / (known_alarms + anomalies), np.nan)
    return {
        "alarm_share": share,
        "alarm_excess": np.abs(share - (1 - quantile)),
        "precision": hits / known_alarms,
        "recall": hits / anomalies,
        "f1": f1,
        **_ranking(ranks),
    }


def _ranks(positive: NDArray[np.bool_], score: Floats, group: Ints, groups: int, bins: int | None) -> Floats:
    """[G, 2, B] windows without and with the class, by bin of the score; equal scores share a bin."""
    edges = np.unique(score)
    if bins is not None and len(edges) > bins:
        shares = np.linspace(0, 1, bins // 2)
        among = [score, score[positive]] if positive.any() else [score]
        edges = np.unique(np.concatenate([np.quantile(part, shares, method="lower") for part in among]))
    number = max(len(edges), 1)
    cells = (group * 2 + positive) * number + np.searchsorted(edges, score, side="right") - 1
    return np.bincount(cells, minlength=groups * 2 * number).reshape(groups, 2, number).astype(np.float64)


def _stacked(ranks: list[Floats]) -> Floats:
    """[G, K, 2, B], with empty bins above where a class has fewer."""
    most = max(each.shape[2] for each in ranks)
    return np.stack([np.pad(each, ((0, 0), (0, 0), (0, most - each.shape[2]))) for each in ranks], axis=1)


def _ranking(ranks: Floats) -> Mapping[Metric, Floats]:
    return {"auc": _mean(_auc(ranks)), "average_precision": _mean(_average_precision(ranks))}


def _auc(ranks: Floats) -> Floats:
    """[...] of [..., 2, B]."""
    without, having = ranks[..., 0, :], ranks[..., 1, :]
    below = np.cumsum(without, axis=-1) - without / 2
    with np.errstate(invalid="ignore"):
        return np.asarray((having * below).sum(axis=-1) / (having.sum(axis=-1) * without.sum(axis=-1)))


def _average_precision(ranks: Floats) -> Floats:
    """[...] of [..., 2, B]: mean precision over the positives, by falling score, equal scores taken at once."""
    having = ranks[..., 1, ::-1]
    hits, taken = np.cumsum(having, axis=-1), np.cumsum(ranks[..., ::-1].sum(axis=-2), axis=-1)
    return np.asarray((having * hits / np.maximum(taken, 1)).sum(axis=-1) / hits[..., -1])


def _mean(figures: Floats) -> Floats:
    """[G] of [G, K]: mean of those that are known."""
    known = ~np.isnan(figures)
    return np.asarray(np.where(known, figures, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan))
