"""Pictures of a candidate on the held-out windows."""

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES: Final = (8.0, 5.0)
_HEXAGONS: Final = 80
_TIME_BINS: Final = 200
_FEATURES_SHOWN: Final = 20


def truth_and_prediction(truth: NDArray[np.float32], predicted: NDArray[np.float32], quantity: str) -> "Figure":
    """Density of predictions over truth; a perfect model is the diagonal."""
    figure, axes = _canvas("Prediction against truth")
    axes.hexbin(truth, predicted, gridsize=_HEXAGONS, bins="log", cmap="viridis", mincnt=1)
    limits = [float(np.nanmin(truth)), float(np.nanmax(truth))]
    axes.plot(limits, limits, color="tab:red", linewidth=1)
    axes.set_xlabel(f"truth: {quantity}")
    axes.set_ylabel(f"prediction: {quantity}")
    return figure


def residuals(end_us: NDArray[np.int64], error: NDArray[np.float32], quantity: str) -> "Figure":
    """Median of prediction less truth over time, with the middle 80 %."""
    figure, axes = _canvas("Residuals over time")
    order = np.argsort(end_us, kind="stable")
    bins = [part for part in np.array_split(order, _TIME_BINS) if len(part)]
    times = [np.datetime64(int(np.mean(end_us[part])), "us") for part in bins]
    low, middle, high = np.array([np.quantile(error[part], [0.1, 0.5, 0.9]) for part in bins]).T
    axes.fill_between(times, low, high, alpha=0.3, linewidth=0, label="80 % of windows")
    axes.plot(times, middle, linewidth=1, label="median")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_ylabel(f"prediction less truth: {quantity}")
    axes.legend()
    return figure


def importance(shares: dict[str, float]) -> "Figure":
    """The features that the model leans on most."""
    figure, axes = _canvas("Feature importance")
    largest = sorted(shares.items(), key=lambda item: item[1])[-_FEATURES_SHOWN:]
    axes.barh([name for name, _ in largest], [share for _, share in largest])
    axes.set_xlabel("share")
    return figure


def _canvas(title: str) -> tuple["Figure", "Axes"]:
    """A figure of its own, without pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
