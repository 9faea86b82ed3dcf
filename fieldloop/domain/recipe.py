"""A use case in one document: what a model reads, what it predicts, how it is learnt, judged, proved and released."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel as ProfileChannel
from fieldloop.domain.profile import Profile
from fieldloop.domain.windows import WindowSpec

Family = Literal["level", "spread", "trend"]
Metric = Literal["mae", "rmse", "r2"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Positive = Annotated[float, Field(gt=0)]
Rows = Annotated[int, Field(ge=1, le=1_000_000)]

_US = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Part(BaseModel):
    """A part of a recipe: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputChannel(_Part):
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


class Target(_Part):
    """What the model predicts: the metric's value in the window's last step."""

    metric: Name


class Grid(_Part):
    """Regular time steps, and how long one stays open for readings that arrive late (seconds)."""

    step_s: int = Field(ge=1, le=86_400)
    grace_s: int = Field(0, ge=0, le=86_400)


class Window(_Part):
    """How much of the past a model reads, in steps, the present one included."""

    length: int = Field(ge=2, le=1_024)


class Split(_Part):
    """By time: windows that end before `train_until` train; those that begin at or after it, until `test_until`, test.

    Windows in between would hold steps of both; they are the embargo and serve neither.
    """

    train_until: AwareDatetime
    test_until: AwareDatetime

    @field_validator("test_until")
    @classmethod
    def _after(cls, test_until: datetime, info: ValidationInfo) -> datetime:
        train_until = info.data.get("train_until")
        if train_until is not None and test_until <= train_until:
            raise ValueError(f"expected a time after train_until ({train_until}), got {test_until}")
        return test_until


class Boosting(_Part):
    """Gradient-boosted trees by XGBoost (histograms)."""

    algorithm: Literal["xgboost"]
    trees: int = Field(300, ge=1, le=5_000)
    depth: int = Field(6, ge=1, le=12)
    learning_rate: float = Field(0.05, gt=0, le=1)
    row_share: float = Field(0.8, gt=0, le=1)
    feature_share: float = Field(0.5, gt=0, le=1)
    least_rows: float = Field(20, ge=0)


class ExtraTrees(_Part):
    """Extremely randomized trees by scikit-learn, medians in place of missing features."""

    algorithm: Literal["extra_trees"]
    trees: int = Field(60, ge=1, le=1_000)
    leaves: int = Field(1_024, ge=2, le=65_536)
    feature_share: float = Field(0.5, gt=0, le=1)
    least_rows: int = Field(10, ge=1)


class Ridge(_Part):
    """The baseline: linear least squares with a penalty, on standardized features, medians where they are missing."""

    algorithm: Literal["ridge"]
    penalty: float = Field(1.0, ge=0)


Candidate = Annotated[Boosting | ExtraTrees | Ridge, Field(discriminator="algorithm")]


class Promotion(_Part):
    """A challenger becomes champion if its metric on the held-out windows is better by more than `margin` (a share)."""

    metric: Metric = "mae"
    margin: float = Field(0.0, ge=0, lt=1)


class Parity(_Part):
    """How far graph and native model may differ (unit of the target), and on how many held-out windows it is tried."""

    limit: Positive
    rows: Rows = 20_000


class Release(_Part):
    """Held-out windows that a release carries as its canary, and the difference that still counts as proved."""

    canary_rows: int = Field(32, ge=1, le=1_024)
    tolerance: float = Field(0.0, ge=0)


class Recipe(_Part):
    """A use case. Its name is that of the experiment, the registered model and the tables in the lake."""

    name: Name
    description: str
    profiles: tuple[Name, ...] = Field(min_length=1)
    channels: tuple[InputChannel, ...] = Field(min_length=1, max_length=256)
    target: Target
    grid: Grid
    window: Window
    features: tuple[Family, ...] = Field(min_length=1)
    split: Split
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    promotion: Promotion = Promotion()
    parity: Parity
    release: Release = Release()

    @field_validator("channels")
    @classmethod
    def _distinct_channels(cls, channels: tuple[InputChannel, ...]) -> tuple[InputChannel, ...]:
        _refuse_repeated([channel.metric for channel in channels])
        return channels

    @field_validator("features", "profiles")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeated(list(names))
        return names

    @field_validator("candidates")
    @classmethod
    def _distinct_candidates(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        _refuse_repeated([candidate.algorithm for candidate in candidates])
        return candidates

    @field_validator("target")
    @classmethod
    def _not_an_input(cls, target: Target, info: ValidationInfo) -> Target:
        if target.metric in [channel.metric for channel in info.data.get("channels", ())]:
            raise ValueError(f"`{target.metric}` is among the channels; a model must not read what it predicts")
        return target

    @field_validator("window")
    @classmethod
    def _longer_than_frozen_runs(cls, window: Window, info: ValidationInfo) -> Window:
        for channel in info.data.get("channels", ()):
            if channel.frozen_steps and channel.frozen_steps > window.length:
                raise ValueError(
                    f"frozen_steps {channel.frozen_steps} of `{channel.metric}` never fit into a window of "
                    f"{window.length} steps; expected at most that"
                )
        return window

    @property
    def inputs(self) -> tuple[str, ...]:
        """Canonical names of the window's rows, in order."""
        return tuple(channel.metric for channel in self.channels)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, whatever the layout and comments of the document were."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def step_us(self) -> int:
        """Grid step, microseconds."""
        return self.grid.step_s * 1_000_000

    def window_spec(self, profile: Profile) -> WindowSpec:
        """Return what the gateway and `preprocess` need to cut windows from devices of one profile.

        Raises:
            DocumentError: if the profile lacks a channel or the target.
        """
        rules = tuple(self._channel(profile, metric).rule for metric in self.inputs)
        self.target_channel(profile)
        return WindowSpec(self.inputs, rules, self.step_us, self.window.length, self.grid.grace_s * 1_000_000)

    def target_channel(self, profile: Profile) -> ProfileChannel:
        """Return the profile's channel of the target, which knows its unit and grid rule.

        Raises:
            DocumentError: if the profile lacks it.
        """
        return self._channel(profile, self.target.metric)

    def splits(self, end_us: NDArray[np.int64]) -> NDArray[np.str_]:
        """Return "train", "test" or "" (embargo or later) for windows by the start of their last step.

        Args:
            end_us: [N] int64, UTC microseconds.

        Returns:
            [N] str.
        """
        first_us = end_us - (self.window.length - 1) * self.step_us
        until_us = end_us + self.step_us
        train = until_us <= to_us(self.split.train_until)
        test = (first_us >= to_us(self.split.train_until)) & (until_us <= to_us(self.split.test_until))
        return np.where(train, "train", np.where(test, "test", ""))

    def _channel(self, profile: Profile, metric: str) -> ProfileChannel:
        for channel in profile.channels:
            if channel.metric == metric:
                return channel
        raise DocumentError(
            f"recipe {self.name}: profile `{profile.name}` has no metric `{metric}`; "
            f"expected one of {', '.join(profile.metrics())}"
        )


def load_recipe(root: Path, name: str) -> Recipe:
    """Read `recipes/<name>.yaml` below the repository's root.

    Raises:
        DocumentError: if there is no such recipe, or it is not one; names file and line.
    """
    path = root / "recipes" / f"{name}.yaml"
    if name not in recipe_names(root):
        raise DocumentError(f"no recipe `{name}` in {path.parent}; expected one of {', '.join(recipe_names(root))}")
    recipe = load(Recipe, path.read_text(encoding="utf-8"), f"recipes/{path.name}")
    if recipe.name != name:
        raise DocumentError(f"recipes/{path.name}: name is `{recipe.name}`; expected the file's, `{name}`")
    return recipe


def recipe_names(root: Path) -> tuple[str, ...]:
    """Return the names of all recipes below the repository's root, sorted."""
    return tuple(sorted(path.stem for path in (root / "recipes").glob("*.yaml")))


def to_us(moment: datetime) -> int:
    """Return UTC microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _US


def _refuse_repeated(names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"given twice: {', '.join(f'`{name}`' for name in repeated)}")
