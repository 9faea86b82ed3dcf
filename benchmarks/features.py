"""Window features a second: the graph's build for batches next to six libraries on the same ten statistics.

Windows of 60 steps, a new one every 60 steps and every 10, over series of which 5 % are missing; the figures are input
values a second (each value counts once, however many windows it is in), on 2 threads. The ten are count, mean, standard
deviation, least, greatest, median, 10 % and 90 % quantile, slope and root mean square; the graph gives five more, which
are thrown away. Each contender's results are compared with the graph's. tsfresh knows no gaps: its series have none.
"""

import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.figure import Figure
from fieldloop.domain.graph import feature_graph
from fieldloop.domain.grid import DeviceGrid
from fieldloop.domain.parts import NO_RUN
from fieldloop.domain.recipe import Recipe
from tasks.examples import Examples
from tasks.matrix import feature_run, features

LENGTH: Final = 60
CHANNELS: Final = 8
DEVICES: Final = 4
STEPS: Final = 480_000  # of the graph's 32 series: 15 million values
TURNS_S: Final = 3.0  # each takes turns for so long, at least one; the best counts
FAMILIES: Final = ("presence", "level", "spread", "quantiles", "trend")
STATISTICS: Final = ("count", "mean", "std", "min", "max", "median", "q10", "q90", "slope", "rms")
TIMES: Final = np.arange(LENGTH, dtype=np.float64)
BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
Series = NDArray[np.float32]  # [K, S]
Statistics = NDArray[Any]  # [10, K, W]


def measure() -> Figure:
    """Run every contender at both strides; the peer of the main figure is the best of them."""
    further: dict[str, Any] = {}
    for stride in (60, 10):
        further[f"stride{stride}"] = round(_graph(stride))
        further[f"stride{stride}_peers"] = {
            name: round(_contender(run, steps, stride, gaps)) for name, (run, steps, gaps) in _CONTENDERS.items()
        }
    best = {stride: max(further[f"stride{stride}_peers"].values()) for stride in (60, 10)}
    further["stride10_ratio"] = round(further["stride10"] / best[10], 2)
    return Figure(
        figure=further["stride60"],
        unit="input values/s at stride 60, 2 threads",
        peer="the best of the six",
        ratio=round(further["stride60"] / best[60], 2),
        further=further,
    )


def _graph(stride: int) -> float:
    found = _examples(_series(DEVICES * CHANNELS, STEPS, 0.05), stride)
    chosen = np.arange(len(found.device))
    built = feature_run(found.recipe)
    seconds = _best(lambda: features(found, chosen, built))
    return DEVICES * CHANNELS * STEPS / seconds


def _contender(run: Callable[[Series, int], Statistics], steps: int, stride: int, gaps: float) -> float:
    """Values a second of one contender, whose results must be the graph's."""
    series = _series(CHANNELS, steps, gaps)
    kept: dict[str, Statistics] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # windows without a value, and the libraries' own
        seconds = _best(lambda: kept.update(last=run(series, stride)))
    for name, got, expected in zip(STATISTICS, kept["last"], _expected(series, stride), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=f"{run.__name__}: {name}")
    return series.size / seconds


def _expected(series: Series, stride: int) -> Statistics:
    """The graph's own ten statistics."""
    found = _examples(series, stride)
    names = feature_graph(found.recipe)[1]
    matrix = features(found, np.arange(len(found.device)))
    columns = [[names.index(f"m{channel}.{name}") for channel in range(CHANNELS)] for name in STATISTICS]
    return np.stack([matrix[:, column].T for column in columns])


def _series(number: int, steps: int, gaps: float) -> Series:
    random = np.random.default_rng(3)
    series = random.normal(20, 5, (number, steps)).astype(np.float32)
    series[random.random(series.shape, dtype=np.float32) < gaps] = np.nan
    return series


def _examples(series: Series, stride: int) -> Examples:
    """Windows of devices with eight channels each."""
    devices, steps = len(series) // CHANNELS, series.shape[1]
    of_device = series.reshape(devices, CHANNELS, steps)
    ends = np.arange(LENGTH - 1, steps, stride)
    rows, codes = np.tile(ends, devices), np.repeat(np.arange(devices, dtype=np.int32), len(ends))
    nothing = np.full(len(rows), np.nan, dtype=np.float32)
    return Examples(
        _recipe(), tuple(f"d{code}" for code in range(devices)),
        tuple(DeviceGrid(np.arange(steps, dtype=np.int64), values) for values in of_device),
        codes, rows * 60_000_000, np.full(len(rows), NO_RUN), nothing, np.full(len(rows), ""),
    )  # fmt: skip


def _recipe() -> Recipe:
    return Recipe.model_validate(
        {
            "name": "bench", "description": "", "profiles": ["bench"],
            "channels": [{"metric": f"m{channel}"} for channel in range(CHANNELS)], "target": {"metric": "y"},
            "grid": {"step_s": 60}, "window": {"length": LENGTH}, "features": FAMILIES,
            "split": {"train_until": "2026-01-01T00:00:00Z", "test_until": "2027-01-01T00:00:00Z"},
            "candidates": [{"algorithm": "ridge"}], "parity": {"limit": 1},
        }
    )  # fmt: skip


def _best(run: Callable[[], object]) -> float:
    """Seconds of the quickest of several turns."""
    turns: list[float] = []
    while sum(turns) < TURNS_S:
        began = time.perf_counter()
        run()
        turns.append(time.perf_counter() - began)
    return min(turns)


def _windows(series: Series, stride: int) -> NDArray[np.float32]:
    """[K, W, 60], a view."""
    return np.lib.stride_tricks.sliding_window_view(series, LENGTH, axis=1)[:, ::stride]


def _numpy(series: Series, stride: int) -> Statistics:
    """NumPy on strided views; its nan-functions are slower than this."""
    x = _windows(series, stride).astype(np.float64)
    ordered = np.sort(x)
    there = ~np.isnan(x)
    n = there.sum(axis=2)
    zeroed = np.where(there, x, 0)
    mean = zeroed.sum(axis=2) / n
    deviation = np.where(there, x - mean[..., None], 0)
    t = np.where(there, TIMES, 0)
    middle = t.sum(axis=2) / n
    distance = np.where(there, TIMES - middle[..., None], 0)
    slope = (distance * deviation).sum(axis=2) / (distance**2).sum(axis=2)
    return np.stack([
        n, mean, np.sqrt((deviation**2).sum(axis=2) / n), ordered[..., 0], _at(ordered, n, 1.0), _at(ordered, n, 0.5),
        _at(ordered, n, 0.1), _at(ordered, n, 0.9), slope, np.sqrt((zeroed**2).sum(axis=2) / n),
    ])  # fmt: skip


def _at(ordered: NDArray[np.float64], n: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    place = (n - 1) * share
    low = np.floor(place).astype(np.int64)
    both = np.take_along_axis(ordered, np.stack([low, np.ceil(place).astype(np.int64)], axis=2), axis=2)
    found: NDArray[np.float64] = both[..., 0] + (both[..., 1] - both[..., 0]) * (place - low)
    return found


def _pandas(series: Series, stride: int) -> Statistics:
    import pandas as pd

    frame = pd.DataFrame(np.hstack([np.full((len(series), 1), np.nan), series]).T)  # windows then end at k * stride
    steps = frame.copy()
    steps.iloc[:] = np.where(frame.isna(), np.nan, np.arange(len(frame))[:, None])
    x, t = (values.rolling(LENGTH, min_periods=1, step=stride) for values in (frame, steps))
    product, square = ((frame * steps), frame**2)
    mean, middle = x.mean(), t.mean()
    cross = product.rolling(LENGTH, min_periods=1, step=stride).mean() - mean * middle
    rms = np.sqrt(square.rolling(LENGTH, min_periods=1, step=stride).mean())
    parts = [x.count(), mean, x.std(ddof=0), x.min(), x.max(), x.median(), x.quantile(0.1), x.quantile(0.9),
             cross / t.var(ddof=0), rms]  # fmt: skip
    whole = parts[0].index >= LENGTH
    return np.stack([part[whole].to_numpy().T for part in parts])


def _polars(series: Series, stride: int) -> Statistics:
    x = pl.col("x")
    t = pl.col("i").filter(x.is_not_null())
    ten = (
        x.count().alias("count"), x.mean().alias("mean"), x.std(ddof=0).alias("std"), x.min().alias("min"),
        x.max().alias("max"), x.median().alias("median"), x.quantile(0.1, "linear").alias("q10"),
        x.quantile(0.9, "linear").alias("q90"),
        (pl.cov(x.drop_nulls(), t, ddof=0) / t.var(ddof=0)).alias("slope"), (x * x).mean().sqrt().alias("rms"),
    )  # fmt: skip
    frame = _long(series).lazy().with_columns(x.fill_nan(None).cast(pl.Float64))
    windows = frame.group_by_dynamic("i", every=f"{stride}i", period=f"{LENGTH}i", group_by="k").agg(ten)
    return _folded(windows.filter(pl.col("i") <= series.shape[1] - LENGTH).sort("k", "i").collect(), len(series))


def _duckdb(series: Series, stride: int) -> Statistics:
    import duckdb

    connection = duckdb.connect(config={"threads": 2})
    connection.register("series", _long(series).with_columns(pl.col("x").fill_nan(None)).to_arrow())
    windows = connection.sql(f"""
        select k, w * {stride} as i, count(x) as count, avg(x) as mean, stddev_pop(x) as std, min(x) as min,
            max(x) as max, median(x) as median, quantile_cont(x, 0.1) as q10, quantile_cont(x, 0.9) as q90,
            regr_slope(x, series.i) as slope, sqrt(avg(x * x)) as rms
        from (select k, series.i, x::double as x,
            unnest(range(greatest(0, (series.i - {LENGTH} + {stride}) // {stride}), series.i // {stride} + 1)) as w
            from series) as series
        where w * {stride} <= {series.shape[1] - LENGTH}
        group by k, w order by k, w
    """)  # noqa: S608 - two numbers of our own
    return _folded(pl.DataFrame(windows.fetch_arrow_table()), len(series))


def _tsflex(series: Series, stride: int) -> Statistics:
    import pandas as pd
    from tsflex.features import FeatureCollection, MultipleFeatureDescriptors

    index = pd.RangeIndex(series.shape[1])
    columns = [pd.Series(values.astype(np.float64), index=index, name=f"m{k}") for k, values in enumerate(series)]
    names = [str(column.name) for column in columns]
    collection = FeatureCollection(MultipleFeatureDescriptors(list(_PLAIN), names, LENGTH, stride))
    table = collection.calculate(columns, return_df=True, n_jobs=1, include_final_window=True)
    parts = [[table[f"{name}__{f.__name__}__w={LENGTH}"] for name in names] for f in _PLAIN]
    return np.array(parts, dtype=np.float64)


def _tsfresh(series: Series, stride: int) -> Statistics:
    from tsfresh import extract_features

    windows = np.ascontiguousarray(_windows(series, stride)).reshape(-1, LENGTH)
    frame = pl.DataFrame({"id": np.repeat(np.arange(len(windows)), LENGTH), "t": np.tile(TIMES, len(windows)),
                          "x": windows.ravel().astype(np.float64)}).to_pandas()  # fmt: skip
    wanted: dict[str, Any] = {
        "length": None, "mean": None, "standard_deviation": None, "minimum": None, "maximum": None, "median": None,
        "quantile": [{"q": 0.1}, {"q": 0.9}], "linear_trend": [{"attr": "slope"}], "root_mean_square": None,
    }  # fmt: skip
    table = extract_features(
        frame, column_id="id", column_sort="t", default_fc_parameters=wanted, n_jobs=2, disable_progressbar=True
    )
    order = ["length", "mean", "standard_deviation", "minimum", "maximum", "median", "quantile__q_0.1",
             "quantile__q_0.9", 'linear_trend__attr_"slope"', "root_mean_square"]  # fmt: skip
    return np.stack([table[f"x__{name}"].to_numpy().reshape(len(series), -1) for name in order])


def _long(series: Series) -> pl.DataFrame:
    """Columns k (series), i (step), x."""
    number, steps = series.shape
    return pl.DataFrame({"k": np.repeat(np.arange(number), steps), "i": np.tile(np.arange(steps), number),
                         "x": series.ravel()}).with_columns(pl.col("i").set_sorted())  # fmt: skip


def _folded(windows: pl.DataFrame, number: int) -> Statistics:
    return np.stack([windows[name].to_numpy().reshape(number, -1) for name in STATISTICS])


def count(x: NDArray[np.float64]) -> float:
    """Values that are there."""
    return float(np.count_nonzero(~np.isnan(x)))


def q10(x: NDArray[np.float64]) -> float:
    """The 10 % quantile."""
    return float(np.nanquantile(x, 0.1))


def q90(x: NDArray[np.float64]) -> float:
    """The 90 % quantile."""
    return float(np.nanquantile(x, 0.9))


def slope(x: NDArray[np.float64]) -> float:
    """Slope of the least-squares line."""
    there = ~np.isnan(x)
    t, v = TIMES[there], x[there]
    return float(np.dot(t - t.mean(), v - v.mean()) / np.dot(t - t.mean(), t - t.mean()))


def rms(x: NDArray[np.float64]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.nanmean(x * x)))


_PLAIN: Final = (count, np.nanmean, np.nanstd, np.nanmin, np.nanmax, np.nanmedian, q10, q90, slope, rms)
# how each runs, steps of its eight series, share of them missing
_CONTENDERS: Final[dict[str, tuple[Callable[[Series, int], Statistics], int, float]]] = {
    "numpy": (_numpy, 240_000, 0.05),
    "polars": (_polars, 240_000, 0.05),
    "duckdb": (_duckdb, 240_000, 0.05),
    "pandas": (_pandas, 60_000, 0.05),
    "tsflex": (_tsflex, 6_000, 0.05),
    "tsfresh": (_tsfresh, 6_000, 0.0),
}
