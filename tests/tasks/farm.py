"""A made-up wind farm small enough to learn in a moment, with a recipe of its own, in the real lake."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import TIME
from tasks.examples import Examples, examples
from tasks.preprocess import split_up

DEVICES = ("T1", "T2")
BEGIN = datetime(2014, 12, 1, tzinfo=UTC)
SPLIT = datetime(2015, 1, 1, tzinfo=UTC)
STEPS = 60 * 144  # days of ten-minute steps
TEXT = """
name: NAME
description: Power of a made-up turbine.
profiles: [senvion-mm82]
channels:
  - {metric: wind_speed, valid: [0, 40], frozen_steps: 3}
  - {metric: pitch_angle}
  - {metric: outdoor_temperature}
target: {metric: active_power}
grid: {step_s: 600}
window: {length: 4}
features: [level, trend]
split: {train_until: 2015-01-01T00:00:00Z, test_until: 2016-01-01T00:00:00Z}
candidates:
  - {algorithm: xgboost, trees: 30, depth: 4, learning_rate: 0.3}
  - {algorithm: extra_trees, trees: 5, leaves: 64}
  - {algorithm: ridge}
promotion: {metric: mae}
parity: {limit: 0.01, rows: 2000}
release: {canary_rows: 32, tolerance: 0.01, alert_above: 5000, alert_hold: 2, latency_ms: 500}
"""


class FarmSettings(Settings):
    """The platform's settings, with recipes from a folder of the test's own."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder with the farm's recipe."""
        return self.folder


def farm(platform: Settings, folder: Path, name: str) -> FarmSettings:
    """Return settings under which the recipe `name` is the farm's."""
    (folder / "recipes").mkdir()
    (folder / "recipes" / f"{name}.yaml").write_text(TEXT.replace("NAME", name))
    (folder / "expectations").symlink_to(platform.root / "expectations")
    return FarmSettings.model_validate({**platform.model_dump(), "folder": folder})


def hours() -> NDArray[np.float32]:
    """Hours since the farm began, one a step: a target that tells when it was."""
    return np.arange(STEPS, dtype=np.float32) / np.float32(6)


def write_tables(settings: FarmSettings, name: str, power: NDArray[np.float32] | None = None) -> tuple[int, int]:
    """Write grid and windows of the farm, and return their versions; power follows the wind unless it is given."""
    grid, windows = tables(load_recipe(settings.root, name), power)
    lake = Lake(settings)
    return lake.replace(f"grid/{name}", grid), lake.replace(f"windows/{name}", windows)


def tables(recipe: Recipe, power: NDArray[np.float32] | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the farm's grid and windows."""
    both = [_device(name, seed, power) for seed, name in enumerate(DEVICES)]
    grid = pl.concat(both)
    windows = pl.concat([device[recipe.window.length - 1 :] for device in both]).select(
        "device", end_time="step_time", target="active_power"
    )
    return grid, split_up(recipe, windows.with_columns(run_time=pl.lit(BEGIN).cast(TIME)))


def windows_of(of: Recipe, target: pl.Expr | None = None, **columns: pl.Expr) -> Examples:
    """The farm's windows, with another target or other channels."""
    grid, index = tables(of)
    grid = grid.with_columns(**columns)
    index = index.drop("split")
    if target is not None:
        joined = index.join(grid, left_on=["device", "end_time"], right_on=["device", "step_time"], how="left")
        index = index.with_columns(joined.with_columns(target=target.cast(pl.Float32))["target"])
    return examples(of, grid, split_up(of, index))


def _device(name: str, seed: int, power: NDArray[np.float32] | None) -> pl.DataFrame:
    """One turbine: power is the cube of the wind, some wind is missing, some is frozen, some power unknown."""
    random = np.random.default_rng(seed)
    wind = random.gamma(4, 2, STEPS).astype(np.float32)
    made = np.minimum(wind**3, 2000).astype(np.float32) if power is None else power.copy()
    made[random.random(STEPS) < 0.01] = np.nan
    wind[random.random(STEPS) < 0.02] = np.nan
    wind[1000:1010] = wind[999]
    times = pl.datetime_range(BEGIN, BEGIN + timedelta(minutes=10) * (STEPS - 1), "10m", time_zone="UTC", eager=True)
    return pl.DataFrame(
        {
            "device": [name] * STEPS,
            "step_time": times.cast(pl.Datetime("us", "UTC")),
            "wind_speed": wind,
            "pitch_angle": random.normal(0, 1, STEPS).astype(np.float32),
            "outdoor_temperature": random.normal(10, 5, STEPS).astype(np.float32),
            "active_power": made,
        }
    )
