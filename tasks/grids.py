"""The devices' grids that windows are cut from: all in memory, or read from the lake when they are asked for."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final, Protocol

import numpy as np
import polars as pl

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.grid import DeviceGrid
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.lake import Lake

BLOCK_VALUES: Final = 8_000_000  # of grids read at once, 32 MB; a device with more is a block of its own
KEPT_VALUES: Final = 96_000_000  # of grids that stay in memory, 384 MB; whoever reads on reads them again


class Grids(Protocol):
    """Grids by the code of their device."""

    def __getitem__(self, code: int, /) -> DeviceGrid:
        """Return a device's grid, input channels only."""
        ...


@dataclass(frozen=True)
class StoredGrid:
    """What is known of a recipe's grid in the lake without reading it.

    Attributes:
        recipe: what the grid is for.
        version: of table `grid/<recipe>`.
        devices: [D] names, sorted.
        steps: [D] how many steps each has.
    """

    recipe: Recipe
    version: int
    devices: tuple[str, ...]
    steps: tuple[int, ...]

    def of(self, first: int, end: int) -> "StoredGrid":
        """Return the same of some neighbouring devices."""
        return StoredGrid(self.recipe, self.version, self.devices[first:end], self.steps[first:end])


class LakeGrids:
    """Grids out of the lake, a block of neighbouring devices at a time; the newest blocks stay in memory.

    Who goes through the devices in their order reads each block once, whatever there is of them.
    """

    def __init__(self, lake: Lake, stored: StoredGrid) -> None:
        """Take the lake and what to read of it."""
        self.lake = lake
        self.stored = stored
        self._rows = lake.scan(f"grid/{stored.recipe.name}", stored.version)
        self._starts = _starts(stored)
        self._kept: OrderedDict[int, tuple[DeviceGrid, ...]] = OrderedDict()  # by number of the block
        self._lock = Lock()

    def __getitem__(self, code: int) -> DeviceGrid:
        """Return a device's grid, input channels only."""
        block = int(np.searchsorted(self._starts, code, side="right")) - 1
        with self._lock:
            if block not in self._kept:
                self._forget(room_for=self._values(block))
                self._kept[block] = self._read(block)
            self._kept.move_to_end(block)
            return self._kept[block][code - self._starts[block]]

    def _forget(self, room_for: int) -> None:
        """Drop the blocks that were not asked for the longest time, until there is room."""
        while self._kept and room_for + sum(map(self._values, self._kept)) > KEPT_VALUES:
            self._kept.popitem(last=False)

    def _values(self, block: int) -> int:
        steps = self.stored.steps[self._starts[block] : self._starts[block + 1]]
        return sum(steps) * _width(self.stored.recipe)

    def _read(self, block: int) -> tuple[DeviceGrid, ...]:
        names = self.stored.devices[self._starts[block] : self._starts[block + 1]]
        wanted = pl.col("device").is_between(pl.lit(names[0]), pl.lit(names[-1]))  # a range, which files are skipped by
        rows = self._rows.select("device", "step_time", *self.stored.recipe.inputs).filter(wanted).collect()
        return device_grids(self.stored.recipe, names, rows)


def look_up(lake: Lake, recipe: Recipe, version: int, devices: tuple[str, ...]) -> StoredGrid:
    """Count the steps of each device.

    Raises:
        StoreError: there is no such table or version.
        TrainingError: the table lacks a device or a channel.
    """
    rows = lake.scan(f"grid/{recipe.name}", version)
    require_channels(recipe, rows.collect_schema().names())
    counted = rows.group_by("device").agg(pl.len()).collect(engine="streaming")
    steps = dict(counted.iter_rows())
    require_devices(recipe, devices, steps)
    return StoredGrid(recipe, version, devices, tuple(steps[name] for name in devices))


def device_grids(recipe: Recipe, devices: tuple[str, ...], rows: pl.DataFrame) -> tuple[DeviceGrid, ...]:
    """Return the grids of some devices.

    Args:
        recipe: which channels, and how long a step is.
        devices: names, each in `rows`.
        rows: device, step_time, a column a channel.
    """
    of_device = rows.partition_by("device", as_dict=True)
    return tuple(_device_grid(recipe, of_device[(name,)]) for name in devices)


def require_channels(recipe: Recipe, columns: list[str]) -> None:
    """Refuse a grid without a channel of the recipe."""
    missing = [metric for metric in recipe.inputs if metric not in columns]
    if missing:
        raise TrainingError(
            f"grid/{recipe.name}: expected columns {', '.join(missing)}, got {', '.join(columns)}; preprocess again"
        )


def require_devices(recipe: Recipe, devices: tuple[str, ...], there: Mapping[str, int]) -> None:
    """Refuse a grid without a device of the windows."""
    for device in devices:
        if device not in there:
            raise TrainingError(
                f"windows/{recipe.name}: device {device} is not in grid/{recipe.name}; "
                "give versions that were made together, or preprocess again"
            )


def _device_grid(recipe: Recipe, rows: pl.DataFrame) -> DeviceGrid:
    if not rows["step_time"].is_sorted():
        rows = rows.sort("step_time")
    columns = [rows[metric].cast(pl.Float32).fill_null(float("nan")).to_numpy() for metric in recipe.inputs]
    return DeviceGrid(rows["step_time"].to_physical().to_numpy() // recipe.step_us, np.stack(columns))


def _starts(stored: StoredGrid) -> list[int]:
    """Codes of the devices with which blocks begin, and behind them the number of devices."""
    starts, filled = [0], 0
    for code, steps in enumerate(stored.steps):
        values = steps * _width(stored.recipe)
        if code > starts[-1] and filled + values > BLOCK_VALUES:
            starts.append(code)
            filled = 0
        filled += values
    return [*starts, len(stored.steps)]


def _width(recipe: Recipe) -> int:
    """Values in memory a step: the channels, and the step's number."""
    return len(recipe.inputs) + 2
