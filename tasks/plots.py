"""Pictures of a candidate on the held-out windows, in one style."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.stores.loading import uncollected

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE_INCHES: Final = (8.0, 5.0)
_WIDE_INCHES: Final = (11.0, 5.0)
_INK: Final = "#1f2933"
_QUIET: Final = "#7b8794"
_COLOURS: Final = ("#1f6feb", "#d1495b", "#2a9d8f", "#e9a23b", "#7b5ea7", "#5c6b73", "#0b525b", "#c77dff")
_HEXAGONS: Final = 80
_TIME_BINS: Final = 200
_FEATURES_SHOWN: Final = 20
_CURVE_POINTS: Final = 500
_CALIBRATION_BINS: Final = 10
_CLASSES_SHOWN: Final = 8
_DEVICES_SHOWN: Final = 4
_MARKS: Final = (0, 0.5, 1, 10, 100, 1_000, 10_000)  # of a score
_CELLS_SPELT: Final = 12  # classes up to which a confusion matrix says its numbers


def truth_and_prediction(truth: NDArray[np.float32], predicted: NDArray[np.float32], quantity: str) -> "Figure":
    """Density of predictions over truth; a perfect model is the diagonal."""
    figure, (axes,) = _canvas("Prediction against truth", f"{len(truth):,} held-out windows")
    cells = axes.hexbin(truth, predicted, gridsize=_HEXAGONS, bins="log", cmap="viridis", mincnt=1, linewidths=0.1)
    limits = [float(np.nanmin(truth)), float(np.nanmax(truth))]
    axes.plot(limits, limits, color=_COLOURS[1], linewidth=1.2, label="perfect")
    axes.set_xlabel(f"truth: {quantity}")
    axes.set_ylabel(f"prediction: {quantity}")
    axes.legend(loc="upper left")
    figure.colorbar(cells, ax=axes, label="windows", pad=0.01)
    return figure


def residuals(end_us: NDArray[np.int64], error: NDArray[np.float32], quantity: str) -> "Figure":
    """Median of prediction less truth over time, with the middle 80 %."""
    figure, (axes,) = _canvas("Residuals over time", f"{len(error):,} held-out windows")
    order = np.argsort(end_us, kind="stable")
    bins = [part for part in np.array_split(order, _TIME_BINS) if len(part)]
    times = [_moment(float(np.mean(end_us[part]))) for part in bins]
    low, middle, high = np.array([np.quantile(error[part], [0.1, 0.5, 0.9]) for part in bins]).T
    axes.fill_between(times, low, high, color=_COLOURS[0], alpha=0.25, linewidth=0, label="80 % of windows")
    axes.plot(times, middle, color=_COLOURS[0], linewidth=1.2, label="median")
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.set_ylabel(f"prediction less truth: {quantity}")
    axes.legend(loc="upper left", ncols=2)
    _date(axes)
    return figure


def ranking(curves: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> "Figure":
    """ROC and precision over recall, a curve a class.

    Args:
        curves: for each class which windows are of it, and their scores; those with and without at least one of each.
    """
    figure, (roc, precision) = _canvas("How well the scores rank", "", _WIDE_INCHES, 2)
    for (name, (positive, score)), colour in zip(list(curves.items())[:_CLASSES_SHOWN], _COLOURS, strict=False):
        hits, misses = _counts(positive, score)
        share = hits[-1] / len(positive)
        roc.plot(misses / misses[-1], hits / hits[-1], color=colour, label=name)
        precision.plot(hits[1:] / hits[-1], hits[1:] / (hits + misses)[1:], color=colour, label=f"{name}: {share:.1%}")
        precision.axhline(share, color=colour, linewidth=0.8, linestyle=":")
    roc.plot([0, 1], [0, 1], color=_QUIET, linewidth=0.8, linestyle=":")
    _square(roc, "false alarms, share of windows without", "found, share of windows with (recall)")
    _square(precision, "found, share of windows with (recall)", "right, share of what is found (precision)")
    roc.legend(loc="lower right")
    precision.legend(loc="best", title="share of windows (dotted: by lot)")
    return figure


def calibration(curves: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> "Figure":
    """How often what is said with a probability comes true, and how often each probability is said."""
    figure, (said, counts) = _canvas("Calibration", "as often as it is said: the diagonal", _WIDE_INCHES, 2)
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    for (name, (positive, score)), colour in zip(list(curves.items())[:_CLASSES_SHOWN], _COLOURS, strict=False):
        cell = np.minimum((score * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
        number = np.bincount(cell, minlength=_CALIBRATION_BINS)
        there = number > 0
        mean = np.bincount(cell, score, _CALIBRATION_BINS)[there] / number[there]
        true = np.bincount(cell, positive, _CALIBRATION_BINS)[there] / number[there]
        said.plot(mean, true, color=colour, marker="o", markersize=4, label=name)
        counts.stairs(number, edges, color=colour, label=name, linewidth=1.4)
    said.plot([0, 1], [0, 1], color=_QUIET, linewidth=0.8, linestyle=":")
    _square(said, "probability said", "share that came true")
    counts.set_xlabel("probability said")
    counts.set_ylabel("windows")
    counts.set_yscale("symlog")
    said.legend(loc="upper left")
    return figure


def confusion(truth: NDArray[np.int64], answer: NDArray[np.int64], names: Sequence[str]) -> "Figure":
    """Windows by true and answered class; shaded by the share of the true class."""
    number = len(names)
    table = np.bincount(truth * number + answer, minlength=number**2).reshape(number, number)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = _canvas("Confusion", f"{len(truth):,} held-out windows")
    axes.grid(visible=False)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(table.shape) if number <= _CELLS_SPELT else ():
        text = f"{table[row, column]:,}\n{shares[row, column]:.1%}"
        dark = shares[row, column] > 0.5
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else _INK, fontsize=9)
    axes.set_xticks(range(number), names, rotation=30 if number > _DEVICES_SHOWN else 0)
    axes.set_yticks(range(number), names)
    axes.set_xlabel("answered")
    axes.set_ylabel("true")
    figure.colorbar(shown, ax=axes, label="share of the true class", pad=0.01)
    return figure


def scores(
    end_us: NDArray[np.int64],
    score: NDArray[np.float32],
    truth: NDArray[np.float32],
    device: NDArray[np.int32],
    names: Sequence[str],
) -> "Figure":
    """Score over time with the labelled stretches behind it: the devices with the most labels, else the highest scores.

    Args:
        end_us: [N] int64.
        score: [N] float32, an alarm from 1 on.
        truth: [N] float32, 1 where labelled, NaN where nobody knows.
        device: [N] int32, into `names`.
        names: [D] devices.
    """
    labelled = np.bincount(device, truth > 0, len(names))
    highest = np.zeros(len(names))
    np.maximum.at(highest, device, score)
    there = np.unique(device)
    chosen = there[np.lexsort((-highest[there], -labelled[there]))][:_DEVICES_SHOWN]
    note = "shaded: labelled as anomalous; an alarm from the line on"
    figure, panels = _canvas("Score over time", note, (11.0, 1.2 + 1.9 * len(chosen)), 1, len(chosen))
    for axes, code in zip(panels, chosen.tolist(), strict=True):
        mine = np.flatnonzero(device == code)
        mine = mine[np.argsort(end_us[mine], kind="stable")]
        _bands(axes, end_us[mine], truth[mine] > 0)
        parts = np.array_split(mine, min(len(mine), 5 * _TIME_BINS))
        times = [_moment(end_us[part][0]) for part in parts]
        axes.plot(times, [score[part].max() for part in parts], color=_COLOURS[0], linewidth=0.9)
        axes.axhline(1, color=_COLOURS[1], linewidth=1)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks([mark for mark in _MARKS if mark <= max(1, score[mine].max())])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(names[code], rotation=0, ha="right", va="center", fontsize=8)
        _date(axes)
    return figure


def importance(shares: dict[str, float]) -> "Figure":
    """The features that the model leans on most."""
    largest = sorted(shares.items(), key=lambda item: item[1])[-_FEATURES_SHOWN:]
    rest = len(shares) - len(largest)
    figure, (axes,) = _canvas("Feature importance", f"{rest} more features lie below" if rest > 0 else "")
    axes.barh([name for name, _ in largest], [share for _, share in largest], color=_COLOURS[0])
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of all features")
    return figure


def _canvas(
    title: str, note: str, size: tuple[float, float] = _SIZE_INCHES, columns: int = 1, rows: int = 1
) -> tuple["Figure", list["Axes"]]:
    """A figure of its own with one look, without pyplot's global state."""
    with uncollected():
        from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=110)
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    figure.suptitle(f"{title}\n" if note else title, fontsize=13, color=_INK, x=0.01, ha="left", fontweight="bold")
    if note:
        figure.text(0.01, 1 - 0.42 / size[1], note, fontsize=9, color=_QUIET, va="top")
    for axes in panels:
        axes.grid(visible=True, color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_QUIET)
    return figure, panels


def _square(axes: "Axes", x: str, y: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _counts(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows with and without the class by falling score, from none on, equal scores taken at once, thinned."""
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    last = last[np.unique(np.linspace(0, len(last) - 1, _CURVE_POINTS).astype(int))]
    hits = np.append(0, np.cumsum(positive[order])[last])
    return hits, np.append(0, last + 1) - hits


def _bands(axes: "Axes", end_us: NDArray[np.int64], labelled: NDArray[np.bool_]) -> None:
    """Shade the stretches that are labelled."""
    edges = np.flatnonzero(np.diff(labelled.astype(np.int8), prepend=0, append=0))
    for begin, end in edges.reshape(-1, 2).tolist():
        axes.axvspan(_moment(end_us[begin]), _moment(end_us[end - 1]), color=_COLOURS[3], alpha=0.35, linewidth=0)


def _moment(us: float) -> Any:
    return np.datetime64(int(us), "us")


def _date(axes: "Axes") -> None:
    """Let times be written as short as they can be."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
