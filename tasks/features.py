"""Features of many windows, with the bits that the release graph gives each of them alone.

    masks (ONNX) → sort along time (NumPy) → features (ONNX)

Each chunk runs on one thread, several chunks side by side: NumPy and onnxruntime both let other threads go on.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fieldloop.domain.graph import MASKED, ORDERED, WINDOW, batch_graphs
from fieldloop.domain.recipe import Recipe

THREADS: Final = 2  # fixed, so that results do not depend on the machine
CHUNK_VALUES: Final = 131_072  # of a graph's run: 1 MB in float64, which stays in a core's cache


class Features:
    """The features of a recipe, ready to run."""

    def __init__(self, recipe: Recipe) -> None:
        graphs = batch_graphs(recipe)
        self._masks = session_of(graphs.masks.SerializeToString())
        self._features = session_of(graphs.features.SerializeToString())
        self.width: int = self._features.get_outputs()[0].shape[1]

    def of(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features [N, F] float32 of a chunk of windows [N, R, T] float32."""
        masked: NDArray[np.float32] = self._masks.run(None, {WINDOW: windows})[0]
        found: NDArray[np.float32] = self._features.run(None, {MASKED: masked, ORDERED: np.sort(masked)})[0]
        return found
