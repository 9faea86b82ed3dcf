"""When a model is promoted, proved and released."""

from typing import Literal

from pydantic import Field

from fieldloop.domain.recipe.part import Part, Positive, Rows

Metric = Literal["mae", "rmse", "r2"]


class Promotion(Part):
    """A challenger becomes champion if its metric on the held-out windows is better by more than `margin` (a share)."""

    metric: Metric = "mae"
    margin: float = Field(0.0, ge=0, lt=1)


class Parity(Part):
    """How far graph and native model may differ (unit of the target), and on how many held-out windows it is tried."""

    limit: Positive
    rows: Rows = 20_000


class Release(Part):
    """Held-out windows that a release carries as its canary, and the difference that still counts as proved."""

    canary_rows: int = Field(32, ge=1, le=1_024)
    tolerance: float = Field(0.0, ge=0)
