"""What a model reads: channels, the grid they lie on, the window, and the features made of it."""

from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from fieldloop.domain.recipe.part import Name, Part

Family = Literal[
    "presence", "level", "spread", "quantiles", "shape", "trend", "differences", "crossings", "autocorrelation",
    "spectrum", "novelty", "remoteness", "patterns", "unrest", "cross_channel", "calendar",
]  # fmt: skip
LEAST_STEPS: Final[dict[Family, int]] = {
    "presence": 1, "level": 1, "calendar": 1, "crossings": 3, "patterns": 36, "unrest": 48,
}  # fmt: skip
"""Of a window; of other families two."""
MOST_STEPS: Final = 4_096
MOST_VALUES: Final = 262_144  # of a window, all channels together: 1 MiB for each device at a gateway
MOST_CROSSED: Final = 16  # channels, 120 pairs


class InputChannel(Part):
    """One row of the window, and what of it the graph takes for missing.

    Attributes:
        metric: canonical name in the profile.
        valid: lowest and highest plausible value, canonical unit, inclusive; others become NaN.
        frozen_steps: a run of at least so many equal values within the window becomes NaN; None for channels that
            may well stand still.
    """

    metric: Name
    valid: tuple[float, float] = (-np.inf, np.inf)
    frozen_steps: int | None = Field(None, ge=2)

    @field_validator("valid")
    @classmethod
    def _ordered(cls, valid: tuple[float, float]) -> tuple[float, float]:
        if not valid[0] < valid[1]:
            raise ValueError(f"expected [lowest, highest], got [{valid[0]}, {valid[1]}]")
        return valid


class Grid(Part):
    """Regular time steps, and how long one stays open for readings that arrive late (seconds).

    A step may be a part of a second, down to a millisecond: `0.02`.
    """

    step_s: int | Annotated[float, Field(allow_inf_nan=False)] = Field(ge=0.001, le=86_400)
    grace_s: int = Field(0, ge=0, le=86_400)

    @field_validator("step_s")
    @classmethod
    def _whole(cls, step_s: float) -> float:
        if abs(step_s * 1e6 - round(step_s * 1e6)) > 1e-6 * step_s:
            raise ValueError(f"expected a whole number of microseconds, got {step_s} s")
        return int(step_s) if step_s == int(step_s) else step_s


class Window(Part):
    """How much of the past a model reads, in steps, the present one included.

    Attributes:
        length: steps in a window.
        least: steps since a device was first seen after which it has windows; those before are missing. Where left out,
            all of a window must have been seen.
        stride: steps from one window that trains or judges to the next. The edge scores every step.
    """

    length: int = Field(ge=1, le=MOST_STEPS)
    least: int | None = Field(None, ge=1)
    stride: int = Field(1, ge=1, le=100_000)

    @field_validator("least")
    @classmethod
    def _within(cls, least: int | None, info: ValidationInfo) -> int | None:
        length = info.data.get("length")
        if least is not None and length is not None and least > length:
            raise ValueError(f"expected at most the window's length {length}, got {least}")
        return least
