"""The whole document: its parts held against one another, and what follows from them."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel as ProfileChannel
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe.candidates import Candidate
from fieldloop.domain.recipe.inputs import LEAST_STEPS, MOST_CROSSED, Family, Grid, InputChannel, Window
from fieldloop.domain.recipe.part import Name, Part, refuse_repeated, to_us
from fieldloop.domain.recipe.rules import Parity, Promotion, Release
from fieldloop.domain.recipe.split import Split
from fieldloop.domain.recipe.target import Target
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.windows import CLOCK, WindowSpec


class Recipe(Part):
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
    rollout: Plan = Plan()

    @field_validator("channels")
    @classmethod
    def _distinct_channels(cls, channels: tuple[InputChannel, ...]) -> tuple[InputChannel, ...]:
        refuse_repeated([channel.metric for channel in channels])
        return channels

    @field_validator("features", "profiles")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        refuse_repeated(list(names))
        return names

    @field_validator("candidates")
    @classmethod
    def _distinct_candidates(cls, candidates: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        refuse_repeated([candidate.algorithm for candidate in candidates])
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

    @field_validator("features")
    @classmethod
    def _fit_the_window(cls, features: tuple[Family, ...], info: ValidationInfo) -> tuple[Family, ...]:
        """Refuse families that this window has no room for."""
        window, channels = info.data.get("window"), info.data.get("channels")
        for family in features:
            least = LEAST_STEPS.get(family, 2)
            if window is not None and window.length < least:
                raise ValueError(f"`{family}` needs windows of at least {least} steps, got {window.length}")
            if family == "cross_channel" and channels is not None and not 2 <= len(channels) <= MOST_CROSSED:
                raise ValueError(f"`{family}` pairs 2 to {MOST_CROSSED} channels, got {len(channels)}")
        return features

    @property
    def inputs(self) -> tuple[str, ...]:
        """Canonical names of the channels that the model reads, in order."""
        return tuple(channel.metric for channel in self.channels)

    @property
    def clock(self) -> bool:
        """Whether windows carry the time of their steps as a last row."""
        return "calendar" in self.features

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the window's rows, in order: the channels, and the clock if it is read."""
        return (*self.inputs, CLOCK) if self.clock else self.inputs

    @property
    def digest(self) -> str:
        """SHA-256 of what a model depends on: neither of layout and comments, nor of how it is rolled out."""
        content = json.dumps(self.model_dump(mode="json", exclude={"rollout"}), sort_keys=True, separators=(",", ":"))
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
        grace_us = self.grid.grace_s * 1_000_000
        return WindowSpec(self.inputs, rules, self.step_us, self.window.length, grace_us, self.clock)

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
