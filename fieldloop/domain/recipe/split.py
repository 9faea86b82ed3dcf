"""Which windows train, which choose among the trained, and which judge the chosen.

A window belongs to a part only with all that it reads and all that its target looks ahead. Those that reach across a
border are the embargo, and serve neither side.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from fieldloop.domain.recipe.part import Name, Part

Share = Annotated[float, Field(gt=0, lt=1)]
Globs = tuple[Annotated[str, Field(min_length=1)], ...]


class ByTime(Part):
    """Windows before `train_until` are learnt from, those after it until `test_until` judge.

    Attributes:
        train_until: the border.
        test_until: nothing from here on is read.
        validate_from: the last stretch before the border, from here on, chooses; otherwise the last `validation_share`.
        validation_share: share of the time before the border.
    """

    by: Literal["time"] = "time"
    train_until: AwareDatetime
    test_until: AwareDatetime
    validate_from: AwareDatetime | None = None
    validation_share: Share = 0.2

    @field_validator("test_until")
    @classmethod
    def _after(cls, test_until: datetime, info: ValidationInfo) -> datetime:
        train_until = info.data.get("train_until")
        if train_until is not None and test_until <= train_until:
            raise ValueError(f"expected a time after train_until ({train_until}), got {test_until}")
        return test_until

    @field_validator("validate_from")
    @classmethod
    def _before(cls, validate_from: datetime | None, info: ValidationInfo) -> datetime | None:
        train_until = info.data.get("train_until")
        if validate_from is not None and train_until is not None and validate_from >= train_until:
            raise ValueError(f"expected a time before train_until ({train_until}), got {validate_from}")
        return validate_from


class ByDevice(Part):
    """Whole devices judge: those whose names match `test`. Where files are devices, this is a split by file.

    Attributes:
        test: name patterns such as `R80790` or `pump-1*`.
        validation: patterns of devices that choose; where left out, the end of each training device's time does.
        validation_share: share of each training device's windows.
    """

    by: Literal["device"]
    test: Annotated[Globs, Field(min_length=1)]
    validation: Globs = ()
    validation_share: Share = 0.2


class ByHistory(Part):
    """The begin of each device's own history is learnt from, whenever that was; what came later judges.

    For anomalies, of which no label is learnt, a window's part is that of its end, and there is no embargo: what came
    before is what a stream has.

    Attributes:
        train_share: share of a device's windows.
        validation_share: share that follows and chooses.
        most: windows of a device beyond which both shares do not grow; None for no bound.
    """

    by: Literal["history"]
    train_share: Share = 0.6
    validation_share: Share = 0.2
    most: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _usable(self) -> "ByHistory":
        if self.train_share + self.validation_share >= 1:
            raise ValueError("train_share and validation_share leave no window to judge by")
        return self


class ByRun(Part):
    """Whole runs judge. A device's history falls into runs at long gaps, or where a channel that numbers them changes.

    A run's part follows from its device and start alone, so that it keeps its side as others come in.

    Attributes:
        gap_steps: more steps than these without a reading begin a new run.
        metric: or the channel that numbers the runs.
        test_share: share of the runs that judge.
        validation_share: share of the runs that choose.
    """

    by: Literal["run"]
    gap_steps: int | None = Field(None, ge=1)
    metric: Name | None = None
    test_share: Share = 0.2
    validation_share: Share = 0.2

    @model_validator(mode="after")
    def _usable(self) -> "ByRun":
        if (self.gap_steps is None) == (self.metric is None):
            raise ValueError("expected either `gap_steps` (a gap begins a run) or `metric` (a channel numbers them)")
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share leave no run to train on")
        return self


class AtRandom(Part):
    """Windows one by one by lot; only for windows that share no step, see `Recipe`."""

    by: Literal["random"]
    test_share: Share = 0.2
    validation_share: Share = 0.2

    @model_validator(mode="after")
    def _usable(self) -> "AtRandom":
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share and validation_share leave no window to train on")
        return self


def _by(split: Any) -> str:
    """A split that does not say how is by time."""
    return str(split.get("by", "time") if isinstance(split, dict) else getattr(split, "by", "time"))


Split = Annotated[
    Annotated[ByTime, Tag("time")]
    | Annotated[ByDevice, Tag("device")]
    | Annotated[ByHistory, Tag("history")]
    | Annotated[ByRun, Tag("run")]
    | Annotated[AtRandom, Tag("random")],
    Discriminator(_by),
]
