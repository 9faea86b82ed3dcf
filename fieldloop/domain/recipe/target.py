"""What a model predicts: a value, a class, how unusual the window is, or how long until something happens."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from fieldloop.domain.recipe.part import Name, Part, refuse_repeated

Kind = Literal["value", "class", "anomaly", "time_to_event"]
Unit = Literal["s", "min", "h", "d"]
ClassName = Annotated[str, Field(min_length=1, max_length=64)]
Horizon = Annotated[int, Field(ge=0, le=100_000)]

UNIT_US: dict[Unit, int] = {"s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


class Labels(Part):
    """Intervals that people or systems noted: columns start, and where they are known end, device and label.

    Attributes:
        file: a CSV or Parquet file, relative to the folder that holds `recipes/`, or absolute.
        table: a table of the lake.
        zone: time zone of times that are written without one.
    """

    file: str | None = None
    table: str | None = None
    zone: str = "UTC"

    @model_validator(mode="after")
    def _one_source(self) -> "Labels":
        if (self.file is None) == (self.table is None):
            raise ValueError("expected either `file` or `table`")
        return self


class Value(Part):
    """The metric's value `horizon` steps after the window's last step; 0 is that step itself: a virtual sensor."""

    kind: Literal["value"] = "value"
    metric: Name
    horizon: Horizon = 0

    @property
    def labels(self) -> None:
        """A value is its own label."""
        return None


class Class(Part):
    """One of several classes, from a channel's values or from labelled intervals.

    Attributes:
        classes: names in the order of their codes; for a channel each with the value that it stands for.
        metric: the channel that says which class it is.
        labels: or the intervals that do.
        otherwise: class of a window that no interval covers; None where such a window is unlabelled.
        horizon: steps after the window's last step.
        within: whether an interval that begins anywhere up to the horizon counts, not only one that covers its step.
    """

    kind: Literal["class"]
    classes: dict[ClassName, float] | Annotated[list[ClassName], Field(min_length=2)]
    metric: Name | None = None
    labels: Labels | None = None
    otherwise: ClassName | None = None
    horizon: Horizon = 0
    within: bool = False

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: Any) -> Any:
        if len(classes) < 2:
            raise ValueError(f"expected at least two classes, got {len(classes)}")
        if isinstance(classes, list):
            refuse_repeated(classes)
        elif len(set(classes.values())) < len(classes):
            raise ValueError("two classes stand for the same value")
        return classes

    @field_validator("otherwise")
    @classmethod
    def _known(cls, otherwise: str | None, info: ValidationInfo) -> str | None:
        classes = info.data.get("classes")
        if otherwise is not None and classes is not None and otherwise not in classes:
            raise ValueError(f"`{otherwise}` is none of the classes {', '.join(classes)}")
        return otherwise

    @model_validator(mode="after")
    def _one_source(self) -> "Class":
        if (self.metric is None) == (self.labels is None):
            raise ValueError("expected either `metric` (a channel that says the class) or `labels` (intervals)")
        if (self.metric is not None) != isinstance(self.classes, dict):
            raise ValueError(
                "with `metric`, `classes` gives each class its value (`{free: 0, busy: 1}`); with `labels` it is a list"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes by code."""
        return tuple(self.classes)


class Anomaly(Part):
    """How unusual the window is, as a share of the threshold: from 1 on it is an alarm. Learnt without labels.

    Attributes:
        quantile: share of the training windows that lie below the threshold.
        labels: intervals that were anomalous, where they are known; they judge, and are never learnt from.
        metric: or a channel that is 1 where it was anomalous.
    """

    kind: Literal["anomaly"]
    quantile: float = Field(0.999, gt=0.5, lt=1)
    labels: Labels | None = None
    metric: Name | None = None

    @property
    def horizon(self) -> int:
        """An anomaly is one now."""
        return 0


class TimeToEvent(Part):
    """Time from the window's end to the next event, for instance the remaining useful life.

    Attributes:
        labels: the events, by their start; windows within an event are unlabelled.
        metric: or a channel that is 1 while the event lasts.
        at_end: or the end of each device's history is the event: devices that ran to failure.
        unit: unit of the prediction.
        cap: longest time that is told apart, in `unit`; windows further away count as that far.
    """

    kind: Literal["time_to_event"]
    labels: Labels | None = None
    metric: Name | None = None
    at_end: bool = False
    unit: Unit
    cap: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> "TimeToEvent":
        if (self.labels is not None) + (self.metric is not None) + self.at_end != 1:
            raise ValueError("expected one of `labels` (events), `metric` (a channel that is 1) and `at_end: true`")
        return self

    @property
    def horizon(self) -> int:
        """Counted by the cap, see `Recipe.lookahead`."""
        return 0


def _kind(target: Any) -> str:
    """A target without a kind is a value."""
    return str(target.get("kind", "value") if isinstance(target, dict) else getattr(target, "kind", "value"))


Target = Annotated[
    Annotated[Value, Tag("value")]
    | Annotated[Class, Tag("class")]
    | Annotated[Anomaly, Tag("anomaly")]
    | Annotated[TimeToEvent, Tag("time_to_event")],
    Discriminator(_kind),
]
