"""The algorithms that compete, one family a file: fitting, conversion to ONNX, and a native form without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.head import Head
from fieldloop.domain.recipe import Candidate
from fieldloop.domain.recipe.candidates import (
    Boosting,
    Deviation,
    ElasticNet,
    ExtraTrees,
    HistogramBoosting,
    IsolationForest,
    LastValue,
    LinearDiscriminant,
    Logistic,
    Majority,
    Mean,
    Neighbours,
    Novelty,
    Pca,
    RandomForest,
    Ridge,
)
from tasks.candidates import arrays, boosting, forests, linear, neighbours, scikit
from tasks.candidates.learner import Learner, Matrix, Problem, problem

__all__ = ["Learner", "Model", "Problem", "convert", "dump", "file_names", "fit", "importances", "problem", "restore"]

HEAD_FILE: Final = "head.json"


@dataclass(frozen=True)
class Model:
    """A fitted learner, and the head that makes its output a prediction."""

    learner: Learner
    head: Head

    def predict(self, features: Matrix) -> Matrix:
        """Return float32 [N, P] for [N, F]."""
        return self.head.apply(self.learner.raw(features))


def fit(
    candidate: Candidate,
    of: Problem,
    names: tuple[str, ...],
    features: Matrix,
    target: NDArray[np.float32],
    seed: int,
) -> Learner:
    """Fit a candidate.

    Args:
        candidate: algorithm and its settings.
        of: what is asked of it.
        names: [F] of the features.
        features: [N, F] float32, NaN where missing; training rows only.
        target: [N] float32 values or codes, none missing; not looked at for anomalies.
        seed: of everything random.

    Raises:
        TrainingError: there are no rows, the target does not vary, or a class is missing.
    """
    _refuse_unlearnable(candidate, of, target)
    match candidate:
        case Boosting():
            return boosting.fit(candidate, of, features, target, seed)
        case RandomForest() | ExtraTrees() | HistogramBoosting():
            return forests.fit(candidate, of, features, target, seed)
        case Ridge() | ElasticNet() | Logistic() | LinearDiscriminant():
            return linear.fit(candidate, of, features, target, seed)
        case Neighbours():
            return neighbours.fit(candidate, of, features, target)
        case LastValue():
            return arrays.fit_last(of, names, target)
        case Mean() | Majority():
            return arrays.fit_constant(of, target)
        case IsolationForest():
            return forests.fit_isolation(candidate, of, features, seed)
        case Deviation():
            return arrays.fit_deviations(names)
        case Novelty():
            return arrays.fit_excesses(candidate, names)
        case Pca():
            return arrays.fit_components(candidate, features)
    assert_never(candidate)


def convert(model: Model, width: int) -> onnx.ModelProto:
    """Return the learner in ONNX: float32 [N, width] → first output float32 [N, K]."""
    return model.learner.convert(width)


def dump(model: Model) -> dict[str, bytes]:
    """Return the model as files: the learner in its library's own format without pickle, and the head."""
    name, data = model.learner.dump()
    return {name: data, HEAD_FILE: msgspec.json.encode(model.head)}


def file_names(algorithm: str) -> tuple[str, str]:
    """Return the names of the files that `dump` writes for an algorithm."""
    if algorithm == "xgboost":
        return boosting.FILE, HEAD_FILE
    own = algorithm in ("last_value", "mean", "majority", "deviation", "novelty", "pca")
    return arrays.FILE if own else scikit.FILE, HEAD_FILE


def restore(of: Problem, files: dict[str, bytes]) -> Model:
    """Return the model that `dump` wrote.

    Raises:
        TrainingError: a file holds a type that is not on the allow-list, or is of another kind.
    """
    try:
        head = msgspec.json.decode(files[HEAD_FILE], type=Head)
    except (KeyError, msgspec.MsgspecError) as exc:
        raise TrainingError(f"native model: expected {HEAD_FILE}: {exc}") from exc
    if boosting.FILE in files:
        return Model(boosting.restore(files[boosting.FILE], of), head)
    if scikit.FILE in files:
        return Model(scikit.restore(files[scikit.FILE], of), head)
    if arrays.FILE in files:
        return Model(arrays.restore(files[arrays.FILE]), head)
    known = f"{boosting.FILE}, {scikit.FILE} or {arrays.FILE}"
    raise TrainingError(f"native model: expected {known}, got {', '.join(sorted(files))}")


def importances(model: Model, names: Sequence[str]) -> dict[str, float]:
    """Return each feature's share in the model, summing to 1; empty where the learner cannot say."""
    raw = model.learner.shares()
    if raw is None:
        return {}
    shares = raw / max(float(np.sum(raw)), np.finfo(np.float64).tiny)
    return dict(zip(names, shares.astype(float).tolist(), strict=True))


def _refuse_unlearnable(candidate: Candidate, of: Problem, target: NDArray[np.float32]) -> None:
    if not len(target):
        raise TrainingError(f"{candidate.algorithm}: expected rows to train on, got none: check the recipe's split")
    if of.classifies:
        counts = np.bincount(target.astype(np.int64), minlength=of.classes)
        if not counts.all():
            code = int(np.flatnonzero(counts == 0)[0])
            raise TrainingError(
                f"{candidate.algorithm}: class {code} has no training window: check the recipe's split and labels, "
                "or leave the class out"
            )
    elif of.kind == "value" and not np.ptp(target):
        raise TrainingError(f"{candidate.algorithm}: the target is {target[0]:g} in all {len(target)} training rows")
