"""What all families have in common: a fitted learner, and the problem that it was fitted to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.head import HeadKind
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.loading import uncollected
from tasks.matrix import THREADS

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Problem:
    """What a learner is asked for.

    Attributes:
        kind: what its raw output is going to become.
        classes: K for classes, else 1.
        last_value: name of the feature that holds the target's present value, for the baseline; None without one.
    """

    kind: HeadKind
    classes: int = 1
    last_value: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether the target is a class."""
        return self.kind in ("probability", "classes")


class Learner(Protocol):
    """A fitted learner in its own library."""

    def raw(self, features: Matrix, /) -> Matrix:
        """Return float32 [N, K] for [N, F]: a value, the shares of the classes, or statistics of how unusual it is."""
        ...

    def convert(self, width: int, /) -> onnx.ModelProto:
        """Return the same as ONNX: float32 [N, width] → first output float32 [N, K]."""
        ...

    def dump(self) -> tuple[str, bytes]:
        """Return a file name and the learner's bytes, without pickle."""
        ...

    def shares(self) -> NDArray[Any] | None:
        """Return how much each feature counts, [F], on any scale; None where the learner cannot say."""
        ...


def problem(recipe: Recipe) -> Problem:
    """Return what a recipe asks of its learners."""
    last = f"{recipe.target.metric}.last" if recipe.target.metric in recipe.inputs else None
    match recipe.target.kind:
        case "class":
            return Problem("classes" if recipe.width > 1 else "probability", len(recipe.classes))
        case "anomaly":
            return Problem("score")
    return Problem("value", last_value=last)


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Compute on as many threads as on any other machine: the last bits of a sum depend on how it was divided."""
    load_libraries()
    from threadpoolctl import threadpool_limits

    with threadpool_limits(THREADS):
        yield


def load_libraries() -> None:
    """Load what has threads of its own, before they are limited."""
    let_threads_sleep()
    with uncollected():
        import scipy.linalg  # noqa: F401
        import sklearn.utils  # noqa: F401


def let_threads_sleep() -> None:
    """Keep OpenMP's threads from spinning: on a busy machine that triples the time. Before its libraries load."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def row_weights(target: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return [N] weights under which every class ([N] codes) weighs the same, 1 on the mean."""
    _, code, counts = np.unique(target, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = len(target) / (len(counts) * counts[code])
    return weights
