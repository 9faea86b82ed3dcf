"""The algorithms that compete: fitting, conversion to ONNX, and a native form without pickle."""

import os
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import ML_OPSET, OPSET
from fieldloop.domain.recipe import Boosting, Candidate, ExtraTrees, Ridge
from tasks.examples import THREADS

XGBOOST_FILE: Final = "model.json"
SKOPS_FILE: Final = "model.skops"
# What a skops file may hold beyond skops' own defaults; never taken from the file itself.
TRUSTED_TYPES: Final = ("numpy.dtype", "sklearn.tree._tree.Tree")
_XGBOOST_OPSET: Final = 15  # the newest that onnxmltools writes for it


class Model(Protocol):
    """A fitted model in its own library."""

    def predict(self, features: NDArray[np.float32], /) -> NDArray[Any]:
        """Return [N] predictions for [N, F] float32."""
        ...


def fit(candidate: Candidate, features: NDArray[np.float32], target: NDArray[np.float32], seed: int) -> Model:
    """Fit a candidate.

    Args:
        candidate: algorithm and its settings.
        features: [N, F] float32, NaN where missing; training rows only.
        target: [N] float32, none missing.
        seed: of everything random.

    Raises:
        TrainingError: there are no rows, or the target does not vary.
    """
    if not len(target):
        raise TrainingError(f"{candidate.algorithm}: expected rows to train on, got none: check the recipe's split")
    if not np.ptp(target):
        raise TrainingError(f"{candidate.algorithm}: the target is {target[0]:g} in all {len(target)} training rows")
    model = _unfitted(candidate, seed)
    model.fit(features, target)
    fitted: Model = model
    return fitted


def convert(model: Model, width: int) -> onnx.ModelProto:
    """Return the model in ONNX: float32 [N, width] → float32 [N, 1]."""
    if _is_xgboost(model):
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType as XgboostTensorType

        types = [("input", XgboostTensorType([None, width]))]
        converted: onnx.ModelProto = convert_xgboost(model, initial_types=types, target_opset=_XGBOOST_OPSET)
        return converted
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    opsets = {"": OPSET, "ai.onnx.ml": ML_OPSET}
    types = [("input", FloatTensorType([None, width]))]
    converted = convert_sklearn(model, initial_types=types, target_opset=opsets)
    return converted


def dump(model: Model) -> tuple[str, bytes]:
    """Return a file name and the model's bytes: XGBoost's JSON, skops for scikit-learn."""
    if _is_xgboost(model):
        return XGBOOST_FILE, bytes(model.get_booster().save_raw("json"))  # type: ignore[attr-defined]
    import skops.io  # type: ignore[import-untyped]

    return SKOPS_FILE, bytes(skops.io.dumps(model))


def restore(file_name: str, data: bytes) -> Model:
    """Return the model that `dump` wrote.

    Raises:
        TrainingError: the file holds a type that is not on the allow-list, or is of another kind.
    """
    if file_name == XGBOOST_FILE:
        from xgboost import XGBRegressor

        booster = XGBRegressor(n_jobs=THREADS)
        booster.load_model(bytearray(data))
        restored: Model = booster
        return restored
    if file_name != SKOPS_FILE:
        raise TrainingError(f"native model: expected {XGBOOST_FILE} or {SKOPS_FILE}, got {file_name}")
    import skops.io

    unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES))
    if unknown:
        raise TrainingError(f"native model {file_name}: holds types that are not trusted: {', '.join(unknown)}")
    restored = skops.io.loads(data, trusted=list(TRUSTED_TYPES))
    return restored


def importances(model: Model, names: Sequence[str]) -> dict[str, float]:
    """Return each feature's share in the model, summing to 1: gain of trees, absolute standardized coefficients."""
    last: Any = model if _is_xgboost(model) else model[-1]  # type: ignore[index]
    raw = last.feature_importances_ if hasattr(last, "feature_importances_") else np.abs(np.ravel(last.coef_))
    shares = raw / max(float(np.sum(raw)), np.finfo(np.float64).tiny)
    return dict(zip(names, shares.astype(float).tolist(), strict=True))


def _is_xgboost(model: object) -> bool:
    return type(model).__module__.startswith("xgboost.")


def _unfitted(candidate: Candidate, seed: int) -> Any:
    match candidate:
        case Boosting():
            return _boosting(candidate, seed)
        case ExtraTrees():
            return _extra_trees(candidate, seed)
        case Ridge():
            return _ridge(candidate)


def _boosting(candidate: Boosting, seed: int) -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # on a busy machine, threads that spin triple the time
    from xgboost import XGBRegressor

    return XGBRegressor(
        n_estimators=candidate.trees,
        max_depth=candidate.depth,
        learning_rate=candidate.learning_rate,
        subsample=candidate.row_share,
        colsample_bytree=candidate.feature_share,
        min_child_weight=candidate.least_rows,
        tree_method="hist",
        n_jobs=THREADS,
        random_state=seed,
    )


def _extra_trees(candidate: ExtraTrees, seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    trees = ExtraTreesRegressor(
        candidate.trees,
        max_leaf_nodes=candidate.leaves,
        max_features=candidate.feature_share,
        min_samples_leaf=candidate.least_rows,
        n_jobs=THREADS,
        random_state=seed,
    )
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), trees)


def _ridge(candidate: Ridge) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge as LinearRidge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    medians = SimpleImputer(strategy="median", keep_empty_features=True)
    return make_pipeline(medians, StandardScaler(), LinearRidge(candidate.penalty))
