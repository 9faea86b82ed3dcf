"""The algorithms that compete, their settings, and the ranges in which these may be searched."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from fieldloop.domain.recipe.part import Part
from fieldloop.domain.recipe.target import Kind

Share = Annotated[float, Field(gt=0, le=1)]


class Range(Part):
    """All numbers from `low` to `high`, on a logarithmic scale where `log`; whole numbers for a whole setting."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"expected low below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected a low above 0 on a logarithmic scale, got {self.low}")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        """The values that must be allowed for all between them to be."""
        return (self.low, self.high)


class Choice(Part):
    """One of these."""

    choices: tuple[float | str | bool, ...] = Field(min_length=2)

    @property
    def ends(self) -> tuple[float | str | bool, ...]:
        """All of them."""
        return self.choices


class Algorithm(Part):
    """What every algorithm has.

    Attributes:
        search: settings to search, each with its range; the others stay as given.
    """

    search: dict[str, Range | Choice] = Field(default_factory=dict)

    @field_validator("search")
    @classmethod
    def _of_settings(cls, search: dict[str, Any]) -> dict[str, Any]:
        known = sorted(cls.model_fields.keys() - {"algorithm", "search"})
        for name, space in search.items():
            if name not in known:
                raise ValueError(f"`{name}` is no setting; expected one of {', '.join(known) or 'none'}")
            for end in space.ends:
                _try(cls, {name: end}, name)
        return search

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, without what is searched."""
        return self.model_dump(exclude={"algorithm", "search"})


class Classifying(Algorithm):
    """What every algorithm has that can tell classes apart.

    Attributes:
        weights: `balanced` lets each class weigh the same, however rare it is.
        calibrated: corrects the probabilities, inside the graph, by what the validation windows show.
    """

    weights: Literal["equal", "balanced"] = "equal"
    calibrated: bool = False


class Boosting(Classifying):
    """Gradient-boosted trees by XGBoost (histograms)."""

    algorithm: Literal["xgboost"]
    trees: int = Field(300, ge=1, le=5_000)
    depth: int = Field(6, ge=1, le=12)
    learning_rate: float = Field(0.05, gt=0, le=1)
    row_share: Share = 0.8
    feature_share: Share = 0.5
    least_rows: float = Field(20, ge=0)
    penalty: float = Field(1.0, ge=0)


class HistogramBoosting(Classifying):
    """Gradient-boosted trees by scikit-learn (histograms)."""

    algorithm: Literal["hist_boosting"]
    trees: int = Field(200, ge=1, le=5_000)
    leaves: int = Field(31, ge=2, le=1_024)
    learning_rate: float = Field(0.08, gt=0, le=1)
    least_rows: int = Field(20, ge=1)
    penalty: float = Field(0.0, ge=0)


class _Forest(Classifying):
    trees: int = Field(60, ge=1, le=1_000)
    leaves: int = Field(1_024, ge=2, le=65_536)
    feature_share: Share = 0.5
    least_rows: int = Field(10, ge=1)


class RandomForest(_Forest):
    """Trees on resampled rows by scikit-learn, medians in place of missing features."""

    algorithm: Literal["random_forest"]


class ExtraTrees(_Forest):
    """Extremely randomized trees by scikit-learn, medians in place of missing features."""

    algorithm: Literal["extra_trees"]


class Ridge(Algorithm):
    """Linear least squares with a penalty, on standardized features, medians where they are missing."""

    algorithm: Literal["ridge"]
    penalty: float = Field(1.0, ge=0)


class ElasticNet(Algorithm):
    """Linear least squares with absolute and square penalties, which leaves features out."""

    algorithm: Literal["elastic_net"]
    penalty: float = Field(0.01, gt=0)
    absolute_share: float = Field(0.5, ge=0, le=1)


class Logistic(Classifying):
    """Logistic regression with a penalty, on standardized features, medians where they are missing."""

    algorithm: Literal["logistic"]
    penalty: float = Field(1.0, gt=0)


class LinearDiscriminant(Algorithm):
    """Classes as normal distributions that share one covariance, on standardized features, medians where missing.

    Attributes:
        shrinkage: share by which the covariance is drawn to a diagonal one; 0 takes it as it is.
    """

    algorithm: Literal["linear_discriminant"]
    shrinkage: float = Field(0.0, ge=0, le=1)


class Neighbours(Algorithm):
    """The mean of the most alike training windows, of `rows` of them spread over all."""

    algorithm: Literal["neighbours"]
    neighbours: int = Field(10, ge=1, le=1_000)
    rows: int = Field(2_000, ge=10, le=20_000)

    @model_validator(mode="after")
    def _enough(self) -> "Neighbours":
        if self.neighbours > self.rows:
            raise ValueError(f"expected at most rows ({self.rows}) neighbours, got {self.neighbours}")
        return self


class LastValue(Algorithm):
    """The baseline of forecasts: it stays as it is. Needs the target among the channels, and the family `level`."""

    algorithm: Literal["last_value"]


class Mean(Algorithm):
    """The baseline of values: the training windows' mean, whatever the window."""

    algorithm: Literal["mean"]


class Majority(Algorithm):
    """The baseline of classes: the training windows' shares, whatever the window."""

    algorithm: Literal["majority"]


class IsolationForest(Algorithm):
    """How few random cuts set a window apart."""

    algorithm: Literal["isolation_forest"]
    trees: int = Field(100, ge=1, le=1_000)
    rows: int = Field(256, ge=2, le=100_000)
    feature_share: Share = 1.0


class Deviation(Algorithm):
    """How far a channel's last value is from its window's mean, in the window's own standard deviations.

    Learns nothing but the threshold, so that it suits devices of any scale. Needs the families `level` and `spread`.
    """

    algorithm: Literal["deviation"]


class Novelty(Algorithm):
    """How unlike all before it in its window a channel's last value, course or stretch is.

    The limits are not learnt, so that they suit devices of any scale, and those that have little to learn from. Those
    that are None count for nothing; of the others the one that is furthest exceeded does.

    Attributes:
        limit: from where on a value beyond the others is an alarm, in widths of the window's middle 80 %. Needs the
            family `novelty`.
        gap: from where on one in a hole between them is: how many times as far from the nearest as any other from its
            own. Needs the family `novelty`.
        remote: from where on one is that is far from all others, on either side: from the nearest, as a share of their
            range. Needs the family `remoteness`.
        pattern: from where on the last course is one: how many times as far from the nearest before it as any of these
            from its own. Needs the family `patterns`.
        unrest: from where on the last stretch is, wilder or calmer than all before it: how far its standard deviation
            lies beyond theirs, as a share of their range. Needs the family `unrest`.
    """

    algorithm: Literal["novelty"]
    limit: float | None = Field(0.75, gt=0)
    gap: float | None = Field(None, gt=1)
    remote: float | None = Field(None, gt=0)
    pattern: float | None = Field(None, gt=1)
    unrest: float | None = Field(None, gt=0)

    @property
    def limits(self) -> dict[str, float]:
        """By the feature that each holds for."""
        limits = {
            "excess": self.limit, "gap": self.gap, "remote": self.remote, "oddity": self.pattern, "unrest": self.unrest,
        }  # fmt: skip
        return {feature: limit for feature, limit in limits.items() if limit is not None}

    @model_validator(mode="after")
    def _some_limit(self) -> "Novelty":
        if not self.limits:
            raise ValueError("`novelty` has no limit at all; expected one of limit, gap, remote, pattern, unrest")
        return self


class Pca(Algorithm):
    """Distance from the plane of principal components (Q), within it (Hotelling's T²), or whichever is further out.

    Attributes:
        explained: share of the variance that the components hold.
        statistic: `q`, `t2` or `both`, each by its own threshold.
    """

    algorithm: Literal["pca"]
    explained: float = Field(0.95, gt=0, lt=1)
    statistic: Literal["q", "t2", "both"] = "both"


Candidate = Annotated[
    Boosting
    | HistogramBoosting
    | RandomForest
    | ExtraTrees
    | Ridge
    | ElasticNet
    | Logistic
    | LinearDiscriminant
    | Neighbours
    | LastValue
    | Mean
    | Majority
    | IsolationForest
    | Deviation
    | Novelty
    | Pca,
    Field(discriminator="algorithm"),
]
AlgorithmName = Literal[
    "xgboost", "hist_boosting", "random_forest", "extra_trees", "ridge", "elastic_net", "logistic",
    "linear_discriminant", "neighbours", "last_value", "mean", "majority", "isolation_forest", "deviation", "novelty",
    "pca",
]  # fmt: skip

_LEARNERS: tuple[AlgorithmName, ...] = ("xgboost", "hist_boosting", "random_forest", "extra_trees", "neighbours")
SUITED: dict[Kind, tuple[AlgorithmName, ...]] = {
    "value": (*_LEARNERS, "ridge", "elastic_net", "last_value", "mean"),
    "time_to_event": (*_LEARNERS, "ridge", "elastic_net", "mean"),
    "class": (*_LEARNERS, "logistic", "linear_discriminant", "majority"),
    "anomaly": ("isolation_forest", "deviation", "novelty", "pca"),
}


def algorithm_of(candidate: type[Part]) -> str:
    """Return the name by which a recipe asks for a kind of candidate."""
    return str(get_args(candidate.model_fields["algorithm"].annotation)[0])


def _try(candidate: type[Algorithm], settings: dict[str, Any], name: str) -> None:
    """Refuse an end of a range that the setting itself would not take."""
    try:
        candidate.model_validate({"algorithm": algorithm_of(candidate), **settings})
    except ValidationError as exc:
        mine = [error["msg"] for error in exc.errors() if name in error["loc"]]
        if mine:
            raise ValueError(f"`{name}`: {mine[0][0].lower()}{mine[0][1:]}, got {settings[name]}") from exc
