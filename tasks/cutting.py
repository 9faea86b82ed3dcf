"""Windows of several devices, by reference: which end where, and how they are cut out of the grids, in chunks."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.windows import cut
from tasks.grids import Grids

CHUNK_VALUES: Final = 131_072  # of windows cut and run at once: 1 MB in float64, what stays in a core's cache


@dataclass(frozen=True)
class Cuts:
    """Windows by reference.

    Attributes:
        recipe: what a window is.
        devices: [D] names.
        grids: their grids, by code.
        device: [N] int32, into `devices`, never decreasing.
        end_us: [N] int64, UTC microseconds at which the last step begins, increasing within a device.
    """

    recipe: Recipe
    devices: tuple[str, ...]
    grids: Grids
    device: NDArray[np.int32]
    end_us: NDArray[np.int64]

    def windows(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cut the chosen windows ([K] increasing), float32 [K, R, T].

        Raises:
            TrainingError: one of them ends at a step that its device's grid does not have.
        """
        recipe = self.recipe
        found = [
            cut(self.grids[code], self.rows(code, mine), recipe.window.length, recipe.step_us, recipe.clock)
            for code, mine in self.by_device(chosen)
        ]
        none = np.zeros((0, len(recipe.rows), recipe.window.length), dtype=np.float32)
        return found[0] if len(found) == 1 else np.concatenate([none, *found])

    def newest(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the input channels at the last step of the chosen windows ([K] increasing), float32 [C, K]."""
        none = np.zeros((len(self.recipe.inputs), 0), dtype=np.float32)
        found = (self.grids[code].values[:, self.rows(code, mine)] for code, mine in self.by_device(chosen))
        return np.concatenate([none, *found], axis=1)

    def chunks(self, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Split the chosen windows into parts small enough to be cut and run at once."""
        number = max(1, CHUNK_VALUES // (len(self.recipe.rows) * self.recipe.window.length))
        yield from (chosen[start : start + number] for start in range(0, len(chosen), number))

    def by_device(self, chosen: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Split the chosen windows ([K] increasing) by device: its code, and its windows."""
        borders = np.flatnonzero(np.diff(self.device[chosen])) + 1
        yield from ((int(self.device[mine[0]]), mine) for mine in np.split(chosen, borders) if len(mine))

    def rows(self, code: int, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a device's grid at which its windows ([K] increasing) end, [K] increasing.

        Raises:
            TrainingError: the grid does not have one of these steps.
        """
        steps, wanted = self.grids[code].steps, self.end_us[mine] // self.recipe.step_us
        rows = np.searchsorted(steps, wanted)
        known = steps[np.minimum(rows, len(steps) - 1)] == wanted
        if not known.all():
            name = self.recipe.name
            raise TrainingError(
                f"windows/{name}: {np.count_nonzero(~known)} windows of device {self.devices[code]} end at steps "
                f"that grid/{name} does not have; give versions that were made together, or preprocess again"
            )
        return rows
