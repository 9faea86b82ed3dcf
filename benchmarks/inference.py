"""Microseconds from one raw window to its prediction: masks, features and 200 trees, by the edge's own code.

Two shapes: the turbine recipe's (6 channels, 6 steps, three families) and a bigger one (8 channels, 60 steps, with
quantiles; the main figures). Each window is another one; `same_window` has one window again and again, where the CPU
soon knows how every comparison of the sort and of the trees ends, as it does of no gateway's data. Next to it, on the
same windows: MLflow's pyfunc of the same graph, with its signature; and without masks and features, on ready feature
rows: MLflow's pyfunc of the trees, as frames with its signature and as bare arrays without one, XGBoost itself,
onnxruntime and, where there is a C compiler, tl2cgen. `ratios` has the release graph's median over that of each.
"""

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pandas as pd
from numpy.typing import NDArray

from benchmarks.figure import Figure
from fieldloop.domain.graph import PREDICTION, WINDOW, feature_graph, merge
from fieldloop.domain.recipe import InputChannel, Recipe, load_recipe
from fieldloop.domain.recipe.candidates import Boosting
from fieldloop.edge.model import Model
from fieldloop.stores.settings import Settings
from tasks import candidates
from tasks.matrix import session_of

ROWS: Final = 20_000  # windows to learn from
RUNS: Final = 20_000
SLOW_RUNS: Final = 3_000
OWN: Final = "release graph"
SAME: Final = "release graph, same window"
WARM_UP: Final = 500
BIG: Final = {"channels": 8, "length": 60, "features": ("level", "spread", "quantiles", "trend")}
TREES: Final = Boosting(algorithm="xgboost", trees=200, depth=6, learning_rate=0.08)


def measure() -> Figure:
    """Time all contenders at both shapes."""
    turbine = load_recipe(Settings().root, "turbine-power")
    further: dict[str, Any] = {}
    for name, recipe in (("turbine", turbine), ("big", _bigger(turbine))):
        further[name] = _contenders(recipe)
    big = further["big"]
    further["p50_us"], further["p99_us"] = big[OWN]
    further["same_window"] = dict(zip(("p50_us", "p99_us"), big[SAME], strict=True))
    return Figure(
        figure=further["p50_us"],
        unit="µs, one window of 8 channels and 60 steps, median",
        peer="MLflow's pyfunc of the trees alone, which is given the features",
        ratio=big["ratios"]["mlflow pyfunc, without features"],
        further=further,
    )


def _bigger(recipe: Recipe) -> Recipe:
    channels = tuple(InputChannel(metric=f"m{i}", valid=(-1000, 1000)) for i in range(int(str(BIG["channels"]))))
    window = recipe.window.model_copy(update={"length": BIG["length"]})
    return recipe.model_copy(update={"channels": channels, "window": window, "features": BIG["features"]})


def _contenders(recipe: Recipe) -> dict[str, Any]:
    """Median and 99th percentile of each, µs."""
    half, names = feature_graph(recipe)
    windows = _windows(recipe)
    rows = session_of(half.SerializeToString()).run(None, {WINDOW: windows})[0]
    learner = _fitted(recipe, names, windows, rows)
    graph = merge(half, learner.convert(len(names)))
    model = Model.load(graph.SerializeToString())
    ones = [windows[i : i + 1] for i in range(RUNS)]
    alone = [rows[i : i + 1] for i in range(RUNS)]
    expected = model.run(windows[:RUNS])
    np.testing.assert_array_equal(np.concatenate([model.run(one) for one in ones]), expected)
    found: dict[str, Any] = {
        "features": len(names),
        OWN: _times(model.run, ones),
        SAME: _times(model.run, ones[:1] * RUNS),
    }
    with tempfile.TemporaryDirectory(prefix="fieldloop-") as folder:
        found["mlflow pyfunc"] = _times(_pyfunc(recipe, graph, Path(folder), expected, ones), ones[:SLOW_RUNS])
        bare = _pyfunc_of_trees(learner.model, Path(folder) / "bare", None)
        found["mlflow pyfunc, without features and signature"] = _times(bare, alone[:SLOW_RUNS])
        frames = [pd.DataFrame(row, columns=list(names)) for row in alone[:SLOW_RUNS]]
        found["mlflow pyfunc, without features"] = _times(
            _pyfunc_of_trees(learner.model, Path(folder) / "signed", frames[0]), frames
        )
        found["xgboost, without features"] = _times(learner.model.get_booster().inplace_predict, alone[:SLOW_RUNS])
        found["onnxruntime, without features"] = _times(_plain(learner.convert(len(names))), alone)
        if shutil.which("gcc"):
            compiled = _compiled(learner.model.get_booster(), Path(folder), alone, expected)
            found["tl2cgen, without features"] = _times(compiled, alone)
    own = found[OWN][0]
    ratios = {peer: round(own / times[0], 3) for peer, times in found.items() if isinstance(times, list)}
    del ratios[OWN], ratios[SAME]
    return {**found, "ratios": ratios}


def _windows(recipe: Recipe) -> NDArray[np.float32]:
    random = np.random.default_rng(11)
    windows = random.normal(8, 3, (ROWS, len(recipe.rows), recipe.window.length)).astype(np.float32)
    windows[random.random(windows.shape) < 0.05] = np.nan
    return windows


def _fitted(recipe: Recipe, names: tuple[str, ...], windows: NDArray[np.float32], rows: NDArray[np.float32]) -> Any:
    target = np.nan_to_num(windows[:, 0]).mean(axis=1) ** 2 + np.random.default_rng(5).normal(0, 1, len(windows))
    return candidates.fit(TREES, candidates.problem(recipe), names, rows, target.astype(np.float32), 1)


def _times(run: Callable[[Any], object], each: list[NDArray[np.float32]]) -> list[float]:
    """Run one after another; return the median and the 99th percentile, µs."""
    for one in each[:WARM_UP]:
        run(one)
    gc.collect()
    gc.disable()
    ns = np.empty(len(each))
    for i, one in enumerate(each):
        began = time.perf_counter_ns()
        run(one)
        ns[i] = time.perf_counter_ns() - began
    gc.enable()
    return [round(float(value) / 1e3, 1) for value in np.percentile(ns, [50, 99])]


def _plain(model: onnx.ModelProto) -> Callable[[Any], object]:
    session = session_of(model.SerializeToString())
    source = session.get_inputs()[0].name
    return lambda row: session.run(None, {source: row})


def _pyfunc(
    recipe: Recipe,
    graph: onnx.ModelProto,
    folder: Path,
    expected: NDArray[np.float32],
    ones: list[NDArray[np.float32]],
) -> Callable[[Any], object]:
    """The release graph as the platform logs it."""
    import mlflow.onnx
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    shape = (-1, len(recipe.rows), recipe.window.length)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), shape, WINDOW)]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, 1), PREDICTION)]),
    )
    mlflow.onnx.save_model(graph, str(folder / "graph"), onnx_execution_providers=["CPUExecutionProvider"],
                           pip_requirements=["onnxruntime"], save_as_external_data=False,
                           signature=signature)  # fmt: skip
    model = mlflow.pyfunc.load_model(str(folder / "graph"))
    answer = next(iter(model.predict({WINDOW: ones[0]}).values()))
    np.testing.assert_array_equal(answer, expected[:1])
    return lambda one: model.predict({WINDOW: one})


def _pyfunc_of_trees(trees: Any, folder: Path, example: pd.DataFrame | None) -> Callable[[Any], object]:
    """The trees as MLflow's own flavour logs them, with the example's signature if there is one."""
    import mlflow.pyfunc
    import mlflow.xgboost
    from mlflow.models import infer_signature

    signature = None if example is None else infer_signature(example, np.zeros(1, dtype=np.float32))
    mlflow.xgboost.save_model(trees, str(folder), signature=signature, pip_requirements=["xgboost-cpu"],
                              model_format="json")  # fmt: skip
    model = mlflow.pyfunc.load_model(str(folder))
    return lambda row: model.predict(row)


def _compiled(
    booster: Any, folder: Path, alone: list[NDArray[np.float32]], expected: NDArray[np.float32]
) -> Callable[[Any], object]:
    import tl2cgen
    import treelite

    trees = treelite.frontend.from_xgboost(booster)
    tl2cgen.export_lib(trees, toolchain="gcc", libpath=str(folder / "trees.so"), params={"parallel_comp": 2})
    predictor = tl2cgen.Predictor(str(folder / "trees.so"), nthread=1)
    answer = predictor.predict(tl2cgen.DMatrix(alone[0]))
    np.testing.assert_allclose(np.ravel(answer), expected[:1, 0], rtol=1e-4)
    return lambda row: predictor.predict(tl2cgen.DMatrix(row))
