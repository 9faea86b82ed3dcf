"""The whole document: its parts held against one another, and what follows from them."""

import hashlib
import json
import math
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator, model_validator

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError
from fieldloop.domain.profile import Channel as ProfileChannel
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe.candidates import SUITED, Candidate
from fieldloop.domain.recipe.devices import GROUP, Devices, Groups
from fieldloop.domain.recipe.inputs import LEAST_STEPS, MOST_CROSSED, MOST_VALUES, Family, Grid, InputChannel, Window
from fieldloop.domain.recipe.part import Name, Part, refuse_repeated
from fieldloop.domain.recipe.rules import METRICS, Drift, Metric, Parity, Promotion, Release, Search
from fieldloop.domain.recipe.split import AtRandom, ByRun, ByTime, Split
from fieldloop.domain.recipe.target import UNIT_US, Class, Labels, Target, TimeToEvent, Value
from fieldloop.domain.rollout.plan import Plan
from fieldloop.domain.windows import CLOCK, WindowSpec


class Recipe(Part):
    """A use case. Its name is that of the experiment, the registered model and the tables in the lake."""

    name: Name
    description: str
    profiles: tuple[Name, ...] = Field(min_length=1)
    devices: Devices = Devices()
    groups: Groups | None = None
    channels: tuple[InputChannel, ...] = Field(min_length=1, max_length=256)
    target: Target
    grid: Grid
    window: Window
    features: tuple[Family, ...] = Field(min_length=1)
    split: Split
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    engine: Literal["local", "dask"] = "local"  # where grids and features are made: in the flow's process, on a cluster
    search: Search = Search()
    promotion: Promotion = Field(default=Promotion(), validate_default=True)
    parity: Parity
    release: Release = Release()
    rollout: Plan = Plan()
    drift: Drift = Drift()

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
    def _suited_candidates(cls, candidates: tuple[Candidate, ...], info: ValidationInfo) -> tuple[Candidate, ...]:
        refuse_repeated([candidate.algorithm for candidate in candidates])
        target = info.data.get("target")
        if target is None:
            return candidates
        for candidate in candidates:
            if candidate.algorithm not in SUITED[target.kind]:
                raise ValueError(
                    f"`{candidate.algorithm}` does not learn a target of kind {target.kind}; "
                    f"expected one of {', '.join(SUITED[target.kind])}"
                )
        return candidates

    @field_validator("target")
    @classmethod
    def _not_an_input(cls, target: Target, info: ValidationInfo) -> Target:
        inputs = [channel.metric for channel in info.data.get("channels", ())]
        if target.metric in inputs and not (isinstance(target, Value | Class) and target.horizon):
            raise ValueError(
                f"`{target.metric}` is among the channels; a model must not read what it predicts. "
                "Take it out, or predict its future with a horizon of at least 1"
            )
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

    @field_validator("window")
    @classmethod
    def _small_enough(cls, window: Window, info: ValidationInfo) -> Window:
        channels = len(info.data.get("channels", ()))
        if window.length * channels > MOST_VALUES:
            raise ValueError(
                f"{window.length} steps of {channels} channels are {window.length * channels:,} values; expected at "
                f"most {MOST_VALUES:,} in a window"
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

    @field_validator("drift")
    @classmethod
    def _known_channels(cls, drift: Drift, info: ValidationInfo) -> Drift:
        known = [channel.metric for channel in info.data.get("channels", ())]
        for name in drift.unjudged if known else ():
            if name not in known:
                raise ValueError(f"`{name}` is no channel; expected some of {', '.join(known)}")
        return drift

    @field_validator("split")
    @classmethod
    def _honest(cls, split: Split, info: ValidationInfo) -> Split:
        window, target = info.data.get("window"), info.data.get("target")
        if window is None or target is None:
            return split
        if isinstance(split, AtRandom) and window.stride < window.length + target.horizon:
            raise ValueError(
                f"windows of {window.length} steps, one every {window.stride}, with a horizon of {target.horizon} "
                "share steps, so that a random test would ask for what was learnt. Split by time, device or run, or "
                f"set window.stride to at least {window.length + target.horizon}"
            )
        if isinstance(split, ByTime | AtRandom) and isinstance(target, TimeToEvent) and target.cap is None:
            raise ValueError(
                "the time to an event looks ahead without end, across any border in time: give the target a `cap`, or "
                "split by device or run"
            )
        return split

    @field_validator("promotion")
    @classmethod
    def _metric_of_the_target(cls, promotion: Promotion, info: ValidationInfo) -> Promotion:
        target = info.data.get("target")
        if target is None:
            return promotion
        known = METRICS[target.kind]
        if "metric" not in promotion.model_fields_set:
            labelled = target.kind == "anomaly" and (target.labels or target.metric)
            return promotion.model_copy(update={"metric": "average_precision" if labelled else known[0]})
        if promotion.metric not in known:
            raise ValueError(
                f"`{promotion.metric}` does not judge a target of kind {target.kind}; "
                f"expected one of {', '.join(known)}"
            )
        return promotion

    @model_validator(mode="after")
    def _baseline_can_see(self) -> "Recipe":
        wanted = [candidate for candidate in self.candidates if candidate.algorithm == "last_value"]
        if wanted and (self.target.metric not in self.inputs or "level" not in self.features):
            raise ValueError(
                "candidate `last_value` needs the target's metric among the channels (with a horizon) and the feature "
                "family `level`"
            )
        return self

    @property
    def inputs(self) -> tuple[str, ...]:
        """Canonical names of the window's rows, in order."""
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
    def beside(self) -> tuple[str, ...]:
        """Metrics that the grid holds beside the window's rows: what is predicted, what numbers the runs."""
        wanted = (self.target.metric, self.split.metric if isinstance(self.split, ByRun) else None)
        return tuple(dict.fromkeys(metric for metric in wanted if metric and metric not in self.inputs))

    @property
    def labels(self) -> Labels | None:
        """Where labelled intervals come from, None where a channel says it."""
        return self.target.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by code; none for other targets."""
        return self.target.names if isinstance(self.target, Class) else ()

    @property
    def target_name(self) -> str:
        """What a prediction is called: the metric, else what kind of thing it is."""
        return self.target.metric or self.target.kind

    @property
    def width(self) -> int:
        """Columns of a prediction: the answer, and for three and more classes the probability of each."""
        return 1 + len(self.classes) if len(self.classes) > 2 else 1

    @property
    def digest(self) -> str:
        """SHA-256 of what a model depends on: not of layout and comments, nor of what is done with it."""
        model = self.model_dump(mode="json", exclude={"engine", "groups", "promotion", "rollout", "drift"})
        model["promotion"] = {"metric": self.promotion.metric}  # it chooses among candidates
        content = json.dumps(model, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def step_us(self) -> int:
        """Grid step, microseconds."""
        return round(self.grid.step_s * 1_000_000)

    @property
    def lookahead(self) -> int:
        """Steps behind a window's end that its target may depend on."""
        if isinstance(self.target, TimeToEvent) and self.target.cap is not None:
            return math.ceil(self.target.cap * UNIT_US[self.target.unit] / self.step_us)
        return self.target.horizon

    @property
    def members(self) -> tuple["Recipe", ...]:
        """The recipes that are learnt from: one a group, else this one."""
        return tuple(self.member(group) for group in self.groups.of) if self.groups else (self,)

    def member(self, group: str) -> "Recipe":
        """Return the recipe of a group: this one on the group's devices, with a model and tables of its own.

        Raises:
            DocumentError: there is no such group.
        """
        known = self.groups.of if self.groups else {}
        if group not in known:
            raise DocumentError(f"recipe {self.name}: no group `{group}`; expected one of {', '.join(known) or 'none'}")
        devices = Devices(include=known[group].include, exclude=(*self.devices.exclude, *known[group].exclude))
        return self.model_copy(update={"name": f"{self.name}{GROUP}{group}", "groups": None, "devices": devices})

    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics by which this kind of target is judged."""
        return METRICS[self.target.kind]

    def window_spec(self, profile: Profile) -> WindowSpec:
        """Return what the gateway and `preprocess` need to cut windows from devices of one profile.

        Raises:
            DocumentError: if the profile lacks a channel, or a metric that the grid holds beside them.
        """
        rules = tuple(self.channel(profile, metric).rule for metric in self.inputs)
        for metric in self.beside:
            self.channel(profile, metric)
        grace_us, least = self.grid.grace_s * 1_000_000, self.window.least or 0
        return WindowSpec(self.inputs, rules, self.step_us, self.window.length, grace_us, self.clock, least)

    def target_unit(self, profile: Profile) -> str:
        """Return the unit of a prediction, for people.

        Raises:
            DocumentError: if the profile lacks the target.
        """
        match self.target:
            case Value():
                return self.channel(profile, self.target.metric).unit
            case TimeToEvent():
                return self.target.unit
            case Class():
                return "class" if self.width > 1 else f"probability of {self.classes[1]}"
        return "share of the threshold"

    def channel(self, profile: Profile, metric: str) -> ProfileChannel:
        """Return the profile's channel of a metric, which knows its unit and grid rule.

        Raises:
            DocumentError: if the profile lacks it.
        """
        for channel in profile.channels:
            if channel.metric == metric:
                return channel
        raise DocumentError(
            f"recipe {self.name}: profile `{profile.name}` has no metric `{metric}`; "
            f"expected one of {', '.join(profile.metrics())}"
        )

    def thinned(self, end_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which windows are kept, [N] bool, by the start of their last step ([N] int64, UTC microseconds)."""
        kept: NDArray[np.bool_] = end_us // self.step_us % self.window.stride == 0
        return kept


def load_recipe(root: Path, name: str) -> Recipe:
    """Read `recipes/<name>.yaml` below the repository's root; `<recipe>--<group>` is the recipe of a group.

    Raises:
        DocumentError: if there is no such recipe, or it is not one; names file and line.
    """
    path, known = root / "recipes" / f"{name}.yaml", recipe_names(root)
    whole, _, group = name.partition(GROUP)
    if name not in known and group and whole in known:
        return load_recipe(root, whole).member(group)
    if name not in known:
        raise DocumentError(f"no recipe `{name}` in {path.parent}; expected one of {', '.join(known)}")
    recipe = load(Recipe, path.read_text(encoding="utf-8"), f"recipes/{path.name}")
    if recipe.name != name:
        raise DocumentError(f"recipes/{path.name}: name is `{recipe.name}`; expected the file's, `{name}`")
    return recipe


def recipe_file(root: Path, name: str) -> Path:
    """Return the file of a recipe, or of the recipe whose group it is."""
    own = root / "recipes" / f"{name}.yaml"
    return own if own.exists() else own.with_stem(name.partition(GROUP)[0])


def recipe_names(root: Path) -> tuple[str, ...]:
    """Return the names of all recipes below the repository's root, sorted."""
    return tuple(sorted(path.stem for path in (root / "recipes").glob("*.yaml")))
