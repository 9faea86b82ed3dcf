"""How good predictions are, and when a challenger is better than the champion."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe import Metric, Promotion

HIGHER_IS_BETTER: Final[frozenset[Metric]] = frozenset({"r2"})


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


def better(challenger: float, champion: float, rule: Promotion) -> bool:
    """Tell whether a challenger's metric beats the champion's by more than the rule's margin, a share of it."""
    gain = challenger - champion if rule.metric in HIGHER_IS_BETTER else champion - challenger
    return gain > rule.margin * abs(champion)
