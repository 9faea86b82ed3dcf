"""Learners of our own, small enough to be kept as JSON: baselines, and principal components for anomalies."""

from typing import Any, Final

import msgspec
import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.recipe.candidates import Novelty, Pca
from tasks.candidates.learner import Matrix, Problem

FILE: Final = "arrays.json"
_FAMILIES: Final = {
    "excess": "novelty", "gap": "novelty", "remote": "remoteness", "oddity": "patterns", "unrest": "unrest",
}  # by the feature that a limit holds for # fmt: skip


class Constant(msgspec.Struct, frozen=True, tag="constant"):
    """The same answer for every window.

    Attributes:
        answer: [K] mean of the values, or shares of the classes.
    """

    answer: tuple[float, ...]

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        return np.tile(np.array(self.answer, dtype=np.float32), (len(features), 1))

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        features = _features(width)
        rows = op.slice(op.shape(features), _index(0), _index(1))
        shape = op.concat([rows, _index(len(self.answer))], axis=0)
        return _graph(features, op.expand(op.const(np.array([self.answer], dtype=np.float32)), shape))

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, msgspec.json.encode(self)

    def shares(self) -> None:
        """Nothing counts."""
        return None


class Last(msgspec.Struct, frozen=True, tag="last"):
    """It stays as it is.

    Attributes:
        column: feature that holds the target's present value.
        otherwise: the answer where that is missing.
    """

    column: int
    otherwise: float

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        present = features[:, self.column : self.column + 1]
        return np.where(np.isnan(present), np.float32(self.otherwise), present)

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        features = _features(width)
        present = op.gather(features, _index(self.column), axis=1)
        return _graph(features, op.where(op.isnan(present), op.const(np.float32(self.otherwise)), present))

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, msgspec.json.encode(self)

    def shares(self) -> None:
        """One feature alone counts, whose name says it."""
        return None


class Deviations(msgspec.Struct, frozen=True, tag="deviations"):
    """The largest distance of a channel's last value from its mean, in its standard deviations; 0 where it has none.

    Attributes:
        last: [C] features that hold the last values.
        mean: [C] those with the means.
        spread: [C] those with the standard deviations.
    """

    last: list[int]
    mean: list[int]
    spread: list[int]

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        last, mean, spread = (features[:, columns] for columns in (self.last, self.mean, self.spread))
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = np.abs(last - mean) / spread
        largest: Matrix = np.where(np.isfinite(sizes), sizes, np.float32(0)).max(axis=1, keepdims=True)
        return largest

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        features = _features(width)
        last, mean, spread = (
            op.gather(features, op.const(np.array(columns, dtype=np.int64)), axis=1)
            for columns in (self.last, self.mean, self.spread)
        )
        sizes = op.div(op.abs(op.sub(last, mean)), spread)
        known = op.and_(op.not_(op.isnan(sizes)), op.not_(op.isinf(sizes)))
        return _graph(features, op.reduce_max(op.where(known, sizes, op.const(np.float32(0))), axes=[1], keepdims=1))

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, msgspec.json.encode(self)

    def shares(self) -> None:
        """All channels count alike."""
        return None


class Excesses(msgspec.Struct, frozen=True, tag="excesses"):
    """How unlike all before it a channel is, by each feature that counts: the largest of all channels, 0 where unknown.

    Attributes:
        columns: [K][C] features: excesses, gaps and others.
    """

    columns: list[list[int]]

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        known = np.where(np.isnan(features), np.float32(0), features)
        return np.stack([known[:, columns].max(axis=1) for columns in self.columns], axis=1)

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        features = _features(width)
        known = op.where(op.isnan(features), op.const(np.float32(0)), features)
        found = [op.gather(known, op.const(np.array(columns, dtype=np.int64)), axis=1) for columns in self.columns]
        return _graph(features, op.concat([op.reduce_max(each, axes=[1], keepdims=1) for each in found], axis=1))

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, msgspec.json.encode(self)

    def shares(self) -> None:
        """The features' names say it."""
        return None


class Components(msgspec.Struct, frozen=True, tag="components"):
    """Principal components of standardized features, and what lies off them.

    Attributes:
        middle: [F] medians, which stand where a feature is missing.
        mean: [F].
        scale: [F] standard deviations.
        axes: [F][P] directions.
        variance: [P] along them.
        statistics: of `q` and `t2`, those wanted.
    """

    middle: list[float]
    mean: list[float]
    scale: list[float]
    axes: list[list[float]]
    variance: list[float]
    statistics: tuple[str, ...]

    def raw(self, features: Matrix) -> Matrix:
        """See `Learner`."""
        filled = np.where(np.isnan(features), np.array(self.middle), features.astype(np.float64))
        standard = (filled - np.array(self.mean)) / np.array(self.scale)
        axes = np.array(self.axes)
        along = standard @ axes
        found = {
            "q": np.square(standard - along @ axes.T).sum(axis=1),
            "t2": (np.square(along) / np.array(self.variance)).sum(axis=1),
        }
        return np.stack([found[name] for name in self.statistics], axis=1).astype(np.float32)

    def convert(self, width: int) -> onnx.ModelProto:
        """See `Learner`."""
        features = _features(width)
        wide = op.cast(features, to=np.float64)
        filled = op.where(op.isnan(wide), _row(self.middle), wide)
        standard = op.div(op.sub(filled, _row(self.mean)), _row(self.scale))
        axes = np.array(self.axes)
        along = op.matmul(standard, op.const(axes))
        off = op.sub(standard, op.matmul(along, op.const(np.ascontiguousarray(axes.T))))
        found = {"q": _sum(op.mul(off, off)), "t2": _sum(op.div(op.mul(along, along), _row(self.variance)))}
        return _graph(features, op.cast(op.concat([found[name] for name in self.statistics], axis=1), to=np.float32))

    def dump(self) -> tuple[str, bytes]:
        """See `Learner`."""
        return FILE, msgspec.json.encode(self)

    def shares(self) -> NDArray[Any]:
        """Return how much of the components' variance lies along each feature."""
        shares: NDArray[Any] = np.square(np.array(self.axes)) @ np.array(self.variance)
        return shares


def fit_constant(problem: Problem, target: NDArray[np.float32]) -> Constant:
    """Take the mean of [N] values, or the shares of [N] codes."""
    if problem.classifies:
        counts = np.bincount(target.astype(np.int64), minlength=problem.classes)
        return Constant(tuple((counts / len(target)).tolist()))
    return Constant((float(np.mean(target, dtype=np.float64)),))


def fit_last(problem: Problem, names: tuple[str, ...], target: NDArray[np.float32]) -> Last:
    """Look up which feature holds the target's present value.

    Raises:
        TrainingError: none does.
    """
    if problem.last_value not in names:
        raise TrainingError(f"last_value: expected a feature {problem.last_value}, got {', '.join(names)}")
    return Last(names.index(problem.last_value), float(np.mean(target, dtype=np.float64)))


def fit_deviations(names: tuple[str, ...]) -> Deviations:
    """Look up the features that hold last values, means and standard deviations.

    Raises:
        TrainingError: a channel lacks one of them.
    """
    channels = [name.removesuffix(".last") for name in names if name.endswith(".last")]
    wanted = {kind: [f"{channel}.{kind}" for channel in channels] for kind in ("last", "mean", "std")}
    missing = [name for each in wanted.values() for name in each if name not in names]
    if missing or not channels:
        raise TrainingError(
            f"deviation: expected last, mean and std of each channel, got none of {', '.join(missing) or 'them'}: "
            "take the families `level` and `spread`"
        )
    last, mean, spread = ([names.index(name) for name in each] for each in wanted.values())
    return Deviations(last, mean, spread)


def fit_excesses(candidate: Novelty, names: tuple[str, ...]) -> Excesses:
    """Look up the features that have limits.

    Raises:
        TrainingError: there is none.
    """
    columns = [[column for column, name in enumerate(names) if name.endswith(f".{kind}")] for kind in candidate.limits]
    for kind, found in zip(candidate.limits, columns, strict=True):
        if not found:
            raise TrainingError(
                f"novelty: expected the {kind} of a channel, got none: take the family `{_FAMILIES[kind]}`"
            )
    return Excesses(columns)


def fit_components(candidate: Pca, features: Matrix) -> Components:
    """Find as many components as hold the share of the variance that is wanted."""
    wide = features.astype(np.float64)
    empty = np.isnan(wide).all(axis=0)
    middle = np.zeros(wide.shape[1])
    middle[~empty] = np.nanmedian(wide[:, ~empty], axis=0)
    filled = np.where(np.isnan(wide), middle, wide)
    mean, spread = filled.mean(axis=0), filled.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    standard = (filled - mean) / scale
    variance, axes = np.linalg.eigh(standard.T @ standard / len(standard))
    variance, axes = variance[::-1], axes[:, ::-1]
    held = np.cumsum(variance) / max(float(variance.sum()), np.finfo(np.float64).tiny)
    number = int(np.searchsorted(held, candidate.explained)) + 1
    statistics = ("q", "t2") if candidate.statistic == "both" else (candidate.statistic,)
    kept = np.maximum(variance[:number], np.finfo(np.float64).eps)
    return Components(
        middle.tolist(), mean.tolist(), scale.tolist(), axes[:, :number].tolist(), kept.tolist(), statistics
    )


def restore(data: bytes) -> Constant | Last | Deviations | Excesses | Components:
    """Return the learner that `dump` wrote.

    Raises:
        TrainingError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Constant | Last | Deviations | Excesses | Components)
    except msgspec.MsgspecError as exc:
        raise TrainingError(f"native model {FILE}: not a learner: {exc}") from exc


def _features(width: int) -> Var:
    return argument(Tensor(np.float32, ("N", width)))


def _graph(features: Var, answer: Var) -> onnx.ModelProto:
    return build({"input": features}, {"raw": answer})


def _index(number: int) -> Var:
    return op.const(np.array([number], dtype=np.int64))


def _row(values: list[float]) -> Var:
    return op.const(np.array([values], dtype=np.float64))


def _sum(values: Var) -> Var:
    return op.reduce_sum(values, op.const(np.array([1], dtype=np.int64)), keepdims=1)
