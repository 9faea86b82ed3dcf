"""XGBoost."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.recipe.candidates import Boosting
from tasks.candidates.learner import Matrix, Problem, let_threads_sleep, row_weights
from tasks.matrix import THREADS

FILE: Final = "model.json"
_OPSET: Final = 15  # the newest that onnxmltools writes for it


@dataclass(frozen=True)
class Boosted:
    """Fitted trees.

    Attributes:
        model: XGBoost's own regressor or classifier.
        classifies: which of the two.
    """

    model: Any
    classifies: bool

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        if self.classifies:
            return np.asarray(self.model.predict_proba(features), dtype=np.float32)
        return np.asarray(self.model.predict(features), dtype=np.float32)[:, None]

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("input", FloatTensorType([None, width]))]
        converted: onnx.ModelProto = convert_xgboost(self.model, initial_types=types, target_opset=_OPSET)
        if self.classifies:
            del converted.graph.output[0]  # the label; it follows from the probabilities
        return converted

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, bytes(self.model.get_booster().save_raw("json"))

    def shares(self) -> NDArray[Any]:
        """Return the gain that each feature brought."""
        shares: NDArray[Any] = self.model.feature_importances_
        return shares


def fit(candidate: Boosting, problem: Problem, features: Matrix, target: Matrix, seed: int) -> Boosted:
    """Fit trees to rows with [N] values or codes."""
    model = _estimator(problem.classifies)(
        n_estimators=candidate.trees,
        max_depth=candidate.depth,
        learning_rate=candidate.learning_rate,
        subsample=candidate.row_share,
        colsample_bytree=candidate.feature_share,
        min_child_weight=candidate.least_rows,
        reg_lambda=candidate.penalty,
        tree_method="hist",
        n_jobs=THREADS,
        random_state=seed,
    )
    weights = row_weights(target) if problem.classifies and candidate.weights == "balanced" else None
    model.fit(features, target, sample_weight=weights)
    return Boosted(model, problem.classifies)


def restore(data: bytes, problem: Problem) -> Boosted:
    """Return the learner that `Boosted.dump` wrote.

    Raises:
        TrainingError: it is something else.
    """
    model = _estimator(problem.classifies)(n_jobs=THREADS)
    from xgboost.core import XGBoostError

    try:
        model.load_model(bytearray(data))
    except (XGBoostError, TypeError, ValueError) as exc:
        reason = str(exc).splitlines()[0]
        raise TrainingError(
            f"native model {FILE}: expected JSON of XGBoost's own, got something else: {reason}"
        ) from exc
    return Boosted(model, problem.classifies)


def _estimator(classifies: bool) -> Any:
    let_threads_sleep()
    from xgboost import XGBClassifier, XGBRegressor

    return XGBClassifier if classifies else XGBRegressor
