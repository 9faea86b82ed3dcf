"""Pipelines of scikit-learn: how all of them predict, convert and are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import ML_OPSET, OPSET
from fieldloop.stores.loading import uncollected
from tasks.candidates.learner import Matrix, Problem

FILE: Final = "model.skops"
# What a skops file may hold beyond skops' own defaults; never taken from the file itself.
TRUSTED_TYPES: Final = (
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
)


@dataclass(frozen=True)
class Fitted:
    """A fitted pipeline.

    Attributes:
        pipeline: scikit-learn's.
        problem: what it was fitted to.
    """

    pipeline: Any
    problem: Problem

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        if self.problem.classifies:
            return np.asarray(self.pipeline.predict_proba(features), dtype=np.float32)
        ask = self.pipeline.score_samples if self.problem.kind == "score" else self.pipeline.predict
        return np.asarray(ask(features), dtype=np.float32).reshape(len(features), 1)

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        options: dict[str, bool] = {"zipmap": False} if self.problem.classifies else {}
        if self.problem.kind == "score":
            options = {"score_samples": True}
        with _plain_attributes():
            converted: onnx.ModelProto = convert_sklearn(
                self.pipeline,
                initial_types=[("input", FloatTensorType([None, width]))],
                target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
                options={id(self.pipeline[-1]): options} if options else None,
            )
        name = converted.graph.output[-1].name  # labels come first
        del converted.graph.output[:]
        shape: list[int | None] = [None, self.problem.classes]
        converted.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return converted

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        with uncollected():
            import skops.io  # type: ignore[import-untyped]

        return FILE, bytes(skops.io.dumps(self.pipeline))

    def shares(self) -> NDArray[Any] | None:
        """Return the trees' gain, or the coefficients of standardized features."""
        last = self.pipeline[-1]
        if hasattr(last, "feature_importances_"):
            shares: NDArray[Any] = last.feature_importances_
            return shares
        if not hasattr(last, "coef_"):
            return None
        sizes: NDArray[Any] = np.abs(np.atleast_2d(last.coef_)).mean(axis=0)
        return sizes


def fit(
    steps: list[Any],
    problem: Problem,
    features: Matrix,
    target: NDArray[np.float32] | None,
    weights: NDArray[np.float64] | None = None,
) -> Fitted:
    """Fit steps one after the other; weights ([N]) are for the last one."""
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(*steps)
    if weights is None:
        pipeline.fit(features, target)
    else:
        pipeline.fit(features, target, **{f"{pipeline.steps[-1][0]}__sample_weight": weights})
    return Fitted(pipeline, problem)


def restore(data: bytes, problem: Problem) -> Fitted:
    """Return the learner that `Fitted.dump` wrote.

    Raises:
        TrainingError: the file holds a type that is not on the allow-list, or is of another kind.
    """
    import skops.io

    try:
        unknown = sorted(set(skops.io.get_untrusted_types(data=data)) - set(TRUSTED_TYPES))
        if unknown:
            raise TrainingError(f"native model {FILE}: holds types that are not trusted: {', '.join(unknown)}")
        return Fitted(skops.io.loads(data, trusted=list(TRUSTED_TYPES)), problem)
    except (BadZipFile, KeyError, TypeError, ValueError) as exc:
        raise TrainingError(f"native model {FILE}: expected an archive of skops, got something else: {exc}") from exc


def medians() -> Any:
    """Return the step that puts a feature's median where it is missing."""
    from sklearn.impute import SimpleImputer

    return SimpleImputer(strategy="median", keep_empty_features=True)


@contextmanager
def _plain_attributes() -> Iterator[None]:
    """Let skl2onnx write plain numbers: those of NumPy that it takes from histogram trees are refused by protobuf 7."""
    from skl2onnx.common import _container

    real = _container.make_node

    def make_node(*arguments: Any, **attributes: Any) -> onnx.NodeProto:
        node: onnx.NodeProto = real(*arguments, **{name: _plain(value) for name, value in attributes.items()})
        return node

    _container.make_node = make_node
    try:
        yield
    finally:
        _container.make_node = real


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, bool | np.bool_ | np.integer):
        return int(value)
    return value
