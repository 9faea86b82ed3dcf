"""What candidates of one recipe are fitted to: features and targets of the windows that learn or choose."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import feature_graph
from fieldloop.domain.recipe import Recipe
from tasks.candidates.learner import Matrix, Problem, problem
from tasks.examples import Examples, spread_out
from tasks.matrix import features


@dataclass(frozen=True)
class Materials:
    """Features and targets of all windows that learn or choose, cut once for many fits.

    Attributes:
        recipe: the use case.
        found: the windows.
        half: the feature graph.
        names: [F] of the features.
        train: [N] int64, windows that train.
        validation: [M] int64, windows that choose.
        train_features: float32 [N, F].
        validation_features: float32 [M, F].
        canary: windows of those that judge that a release carries.
    """

    recipe: Recipe
    found: Examples
    half: onnx.ModelProto
    names: tuple[str, ...]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    train_features: Matrix
    validation_features: Matrix
    canary: NDArray[np.int64]

    @property
    def problem(self) -> Problem:
        """What is asked of a learner."""
        return problem(self.recipe)

    @property
    def train_target(self) -> NDArray[np.float32]:
        """[N] float32."""
        return self.found.target[self.train]

    @property
    def validation_target(self) -> NDArray[np.float32]:
        """[M] float32."""
        return self.found.target[self.validation]


def prepare(recipe: Recipe, found: Examples) -> Materials:
    """Make the features of all windows that learn or choose.

    Raises:
        TrainingError: a part of the split is empty.
    """
    half, names = feature_graph(recipe)
    train, validation = found.chosen("train"), found.chosen("validation")
    for part, windows in (("train", train), ("validation", validation), ("test", found.chosen("test"))):
        if not len(windows):
            raise TrainingError(
                f"{recipe.name}: expected windows for {part}, got {found.counts()}: "
                f"see `fieldloop recipe check {recipe.name}`, and change the recipe's split"
            )
    test = found.chosen("test")
    canary = test[spread_out(features(found, test), recipe.release.canary_rows)]
    matrices = features(found, train), features(found, validation)
    return Materials(recipe, found, half, names, train, validation, *matrices, canary)
