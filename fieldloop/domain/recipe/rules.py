"""How candidates are compared, and when a model is promoted, proved and released."""

from typing import Final, Literal

from pydantic import Field

from fieldloop.domain.recipe.part import Name, Part, Positive, Rows
from fieldloop.domain.recipe.target import Kind

Metric = Literal[
    "mae", "rmse", "r2",
    "log_loss", "accuracy", "balanced_accuracy", "f1", "auc", "average_precision",
    "alarm_share", "alarm_excess", "precision", "recall",
]  # fmt: skip

# Those a kind of target is judged by; the first is the one to choose and promote by unless the recipe names another.
METRICS: dict[Kind, tuple[Metric, ...]] = {
    "value": ("mae", "rmse", "r2"),
    "time_to_event": ("mae", "rmse", "r2"),
    "class": ("log_loss", "accuracy", "balanced_accuracy", "f1", "auc", "average_precision"),
    "anomaly": ("alarm_excess", "alarm_share", "auc", "average_precision", "precision", "recall", "f1"),
}


LONGEST_APPROVAL_H: Final = 168


class Promotion(Part):
    """When a challenger takes the champion's place; candidates of one training are ranked by the same metric.

    Attributes:
        metric: that decides.
        margin: share of the champion's figure by which the challenger must be better, over and above chance: the whole
            interval of its lead on the same held-out windows lies beyond.
        device_limit: share of the champion's figure on a device by which the challenger may be worse there; None looks
            at no device.
        approval: whether a person has the last word: *register* pauses until someone promotes or rejects.
        approval_hours: how long; nobody's word rejects.
    """

    metric: Metric = "mae"
    margin: float = Field(0.0, ge=0, lt=1)
    device_limit: float | None = Field(0.2, ge=0)
    approval: bool = False
    approval_hours: float = Field(24, gt=0, le=LONGEST_APPROVAL_H)


class Parity(Part):
    """How far graph and native model may differ (unit of the target), and on how many held-out windows it is tried."""

    limit: Positive
    rows: Rows = 20_000


class Release(Part):
    """What a release carries beside its graph.

    Attributes:
        canary_rows: held-out windows that it must give the right outputs on.
        tolerance: difference of an output that still counts as proved, unit of the target.
        alert_below: a target publishes an alert for a prediction below it, unit of the target; None sets no limit.
        alert_above: the same for one above it.
        alert_hold: steps after a prediction beyond a limit in which another of the device is no new alert.
        memory_mb: resident memory that the agent may take with it, in 10^6 bytes; above it the target goes back.
        latency_ms: what its graph may take for one window.
    """

    canary_rows: int = Field(32, ge=1, le=1_024)
    tolerance: float = Field(0.0, ge=0)
    alert_below: float | None = None
    alert_above: float | None = None
    alert_hold: int = Field(0, ge=0, le=1_000_000)
    memory_mb: float | None = Field(None, gt=0)
    latency_ms: float | None = Field(None, gt=0)


class Search(Part):
    """What searching a candidate's space may cost: so many trials, and no new one after so many seconds."""

    trials: int = Field(20, ge=1, le=1_000)
    seconds: float | None = Field(None, gt=0)


class Drift(Part):
    """When what the targets see counts as another distribution than what the model was learnt from.

    Attributes:
        limit: gap of two distribution functions from which a channel has drifted, see `domain.drift`.
        least_values: on either side, before anything is said of a channel: enough devices for long enough that a few
            days' weather is no drift.
        unjudged: channels whose distance is shown and counts for nothing, such as one that follows the season.
        retrain: whether a drift announces itself, which trains and deploys anew; else it is shown, and no more.
    """

    limit: float = Field(0.2, gt=0, le=1)
    least_values: int = Field(1_000, ge=1)
    unjudged: tuple[Name, ...] = ()
    retrain: bool = True
