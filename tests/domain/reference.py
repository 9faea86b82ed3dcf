"""The features once more, in NumPy, a channel of one window at a time, as a textbook has them."""

import math
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Window = NDArray[np.float64]
Channel = dict[str, object]


def features(window: NDArray[np.float32], channels: list[Channel]) -> dict[str, float]:
    """All features of one window [C, T]."""
    rows = [masked(row, channel) for row, channel in zip(window, channels, strict=True)]
    names = [str(channel["metric"]) for channel in channels]
    with np.errstate(all="ignore"):
        found = {
            f"{name}.{key}": value for name, row in zip(names, rows, strict=True) for key, value in one(row).items()
        }
        for (a, x), (b, y) in combinations(zip(names, rows, strict=True), 2):
            found[f"{a}~{b}.corr"] = correlation(x, y)
    return found


def masked(row: NDArray[np.float32], channel: Channel) -> Window:
    """The values with NaN where they are out of range, infinite or frozen."""
    values = row.tolist()
    lowest, highest = (float(np.float32(bound)) for bound in channel.get("valid", (-math.inf, math.inf)))  # type: ignore[attr-defined]
    frozen: set[int] = set()
    steps = channel.get("frozen_steps")
    if isinstance(steps, int):
        for start in range(len(values) - steps + 1):
            if all(value == values[start] for value in values[start : start + steps]):
                frozen.update(range(start, start + steps))
    kept = [math.isfinite(v) and lowest <= v <= highest and step not in frozen for step, v in enumerate(values)]
    return np.where(kept, values, np.nan)


def one(x: Window) -> dict[str, float]:
    """The features of one channel; NaN for all that needs a value where there is none."""
    there = np.flatnonzero(~np.isnan(x))
    v = x[there]
    if not len(v):
        return {"count": 0.0}
    d = np.diff(x)
    pairs = np.count_nonzero(~np.isnan(d))
    power = np.abs(np.fft.rfft(np.nan_to_num(x - v.mean()))) ** 2 * 2
    power[-1] /= 2 if len(x) % 2 == 0 else 1
    dev = np.nan_to_num(x - v.mean())
    octaves = [2**k for k in range((len(x) // 2).bit_length())]
    return {
        "count": len(v), "last": x[-1], "mean": v.mean(), "min": v.min(), "max": v.max(),
        "rms": math.sqrt(np.mean(v**2)), "std": v.std(), "range": np.ptp(v),
        **{name: np.quantile(v, q) for name, q in QUANTILES.items()},
        "skew": np.mean((v - v.mean()) ** 3) / v.std() ** 3,
        "kurtosis": np.mean((v - v.mean()) ** 4) / v.var() ** 2 - 3,
        "slope": np.polyfit(there, v, 1)[0] if len(v) > 1 else math.nan, "delta": d[-1],
        **({} if not pairs else {
            "diff_mean": np.nanmean(np.abs(d)), "diff_max": np.nanmax(np.abs(d)),
            "diff_rms": math.sqrt(np.nanmean(d**2)),
            "mean_crossings": np.count_nonzero(dev[1:] * dev[:-1] < 0) / pairs,
            "turns": np.count_nonzero(d[1:] * d[:-1] < 0) / pairs,
        }),
        **excess(x),
        **remote(x),
        **oddity(x),
        **unrest(x),
        **{f"acf{k}": np.sum(dev[k:] * dev[:-k]) / np.sum(dev**2) for k in (1, 2, 4, 8, 16) if k <= len(x) // 2},
        **{f"band{low}": power[low : 2 * low].sum() / power[1:].sum() for low in octaves},
    }  # fmt: skip


def excess(x: Window) -> dict[str, float]:
    """How far the last value lies beyond all before it, in widths of the middle 80 %, and how lonely it is."""
    if np.isnan(x[-1]) or np.isnan(x[:-1]).all():
        return {"excess": math.nan, "gap": math.nan}
    beyond = max(x[-1] - np.nanmax(x[:-1]), np.nanmin(x[:-1]) - x[-1], 0.0)
    width = np.nanquantile(x, 0.9) - np.nanquantile(x, 0.1)
    others = list(x[:-1][~np.isnan(x[:-1])])
    nearest = min(abs(x[-1] - other) for other in others)
    distances = [
        min(abs(v - w) for j, w in enumerate(others) if j != i) for i, v in enumerate(others) if len(others) > 1
    ]
    most = max(distances, default=nearest)
    gap = min(nearest / max(most, 1e-30), 1e6) if nearest > most else 0.0
    return {"excess": min(beyond / max(width, 1e-30), 1e6), "gap": gap}


def remote(x: Window) -> dict[str, float]:
    """How far the last value is from the nearest of all others, as a share of their range."""
    if np.isnan(x[-1]) or np.isnan(x[:-1]).all():
        return {"remote": math.nan}
    extent = np.nanmax(x[:-1]) - np.nanmin(x[:-1])
    return {"remote": min(float(np.nanmin(np.abs(x[:-1] - x[-1]))) / max(extent, 1e-30), 1e6)}


def oddity(x: Window) -> dict[str, float]:
    """How many times as far the last course of twelve blocks is from its nearest as any before it from its own."""
    x = x[-1024:]
    if len(x) < 36:
        return {}
    means = [math.nan if np.isnan(block).all() else float(np.nanmean(block)) for block in blocks(x, 80)]
    courses = np.lib.stride_tricks.sliding_window_view(means, 12)
    apart = np.nan_to_num(np.square(courses[:, None] - courses).sum(axis=2), nan=np.inf)
    before = len(courses) - 12
    each = [min((apart[i, j] for j in range(before) if abs(i - j) >= 12), default=math.inf) for i in range(before)]
    finite = [distance for distance in each if distance < math.inf]
    nearest = min(apart[-1, :before])
    if not finite or nearest == math.inf:
        return {"oddity": math.nan}
    times = min(math.sqrt(nearest / max(*finite, 1e-60)), 1e6)
    return {"oddity": times if nearest > max(finite) else 0.0}


def unrest(x: Window) -> dict[str, float]:
    """How far the deviation of the last 24 blocks lies beyond those of all before, as a share of their range."""
    if len(x) < 48:
        return {}
    cut = blocks(x, 336)
    stretches = [cut[start : start + 24] for start in range(len(cut) - 23)]
    *before, last = [math.nan if np.isnan(each).all(axis=1).any() else float(np.nanstd(each)) for each in stretches]
    known = [spread for spread in before if not math.isnan(spread)]
    if math.isnan(last) or np.isnan(before[: len(before) - 23]).all():
        return {"unrest": math.nan}
    beyond = max(last - max(known), min(known) - last, 0.0)
    return {"unrest": min(beyond / max(max(known) - min(known), 0.03 * max(known), 1e-30), 1e6)}


def blocks(x: Window, least: int) -> Window:
    """The window's steps in at least so many blocks, where it has as many; what is over is left out at its begin."""
    steps = max(1, len(x) // least)
    return x[len(x) % steps :].reshape(-1, steps)


def correlation(x: Window, y: Window) -> float:
    """Of deviations from each channel's own mean, over the steps at which both are there."""
    dx, dy = (values - (np.nanmean(values) if (~np.isnan(values)).any() else 0) for values in (x, y))
    both = ~np.isnan(dx) & ~np.isnan(dy)
    return float(np.sum(dx[both] * dy[both]) / math.sqrt(np.sum(dx[both] ** 2)) / math.sqrt(np.sum(dy[both] ** 2)))


QUANTILES = {"q10": 0.1, "q25": 0.25, "median": 0.5, "q75": 0.75, "q90": 0.9}
