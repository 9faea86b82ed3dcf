"""How much a value tells about the ones after it."""

import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, earlier, later
from fieldloop.domain.features.columns import Features, per_channel

MOST_LAG = 16  # steps


def autocorrelation(window: Cleaned) -> list[Features]:
    """Return `acf1`, `acf2`, `acf4` and so on to half the window, at most 16 steps; NaN where nothing varies.

    The usual estimate, Σ d(t) d(t + lag) / Σ d(t)², with deviations d from the mean, 0 in gaps.
    """
    return per_channel({f"acf{lag}": _at(window, lag) for lag in lags(window.length)})


def lags(length: int) -> tuple[int, ...]:
    """Return the lags for a window of `length` steps: powers of two."""
    return tuple(lag for lag in (1, 2, 4, 8, MOST_LAG) if lag <= length // 2)


def _at(window: Cleaned, lag: int) -> Var:
    products = op.mul(later(window.deviation, lag), earlier(window.deviation, lag))
    return op.div(window.total(products, window.length - lag), window.sum_of_squares)
