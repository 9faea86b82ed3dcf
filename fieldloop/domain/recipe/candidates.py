"""The algorithms that compete, and their settings."""

from typing import Annotated, Literal

from pydantic import Field

from fieldloop.domain.recipe.part import Part


class Boosting(Part):
    """Gradient-boosted trees by XGBoost (histograms)."""

    algorithm: Literal["xgboost"]
    trees: int = Field(300, ge=1, le=5_000)
    depth: int = Field(6, ge=1, le=12)
    learning_rate: float = Field(0.05, gt=0, le=1)
    row_share: float = Field(0.8, gt=0, le=1)
    feature_share: float = Field(0.5, gt=0, le=1)
    least_rows: float = Field(20, ge=0)


class ExtraTrees(Part):
    """Extremely randomized trees by scikit-learn, medians in place of missing features."""

    algorithm: Literal["extra_trees"]
    trees: int = Field(60, ge=1, le=1_000)
    leaves: int = Field(1_024, ge=2, le=65_536)
    feature_share: float = Field(0.5, gt=0, le=1)
    least_rows: int = Field(10, ge=1)


class Ridge(Part):
    """The baseline: linear least squares with a penalty, on standardized features, medians where they are missing."""

    algorithm: Literal["ridge"]
    penalty: float = Field(1.0, ge=0)


Candidate = Annotated[Boosting | ExtraTrees | Ridge, Field(discriminator="algorithm")]
