"""Channels that give the target away: what looks like a model and is a copy."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.metrics import auc
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.recipe.target import Class
from tasks.examples import Examples

_COPY: Final = 0.9999  # size of a correlation, or AUC, from which a channel counts as the target itself
_SUSPECT: Final = 0.98
_ROWS: Final = 20_000  # windows looked at
_FEWEST: Final = 30  # windows below which a correlation says nothing


@dataclass(frozen=True)
class Likeness:
    """How much of the target one channel's last value, or one feature, tells.

    Attributes:
        metric: the channel or feature.
        share: size of the correlation for numbers; for classes 2·AUC-1 of the best told one; 1 tells all.
    """

    metric: str
    share: float

    @property
    def copies(self) -> bool:
        """Whether the channel is the target under another name."""
        return self.share >= _COPY

    @property
    def suspect(self) -> bool:
        """Whether it is close to that."""
        return self.share >= _SUSPECT


def likenesses(found: Examples) -> tuple[Likeness, ...]:
    """Return how much each channel's last value tells of the target, in training windows; nothing for anomalies."""
    train = found.chosen("train")
    if found.recipe.target.kind == "anomaly" or len(train) < _FEWEST:
        return ()
    chosen = train[:: max(1, len(train) // _ROWS)]
    last = np.concatenate([found.windows(part)[:, :, -1] for part in found.chunks(chosen)])
    target = found.target[chosen]
    return tuple(
        Likeness(metric, tell(found.recipe, last[:, row], target)) for row, metric in enumerate(found.recipe.inputs)
    )


def tell(recipe: Recipe, values: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    """Return how much of the target one column of values tells, as `Likeness.share` counts it."""
    return _of_classes(values, target) if isinstance(recipe.target, Class) else _of_numbers(values, target)


def refuse_leaks(found: Examples) -> None:
    """Refuse windows in which a channel is the target itself.

    Raises:
        TrainingError: one is; nothing is learnt.
    """
    copies = [likeness.metric for likeness in likenesses(found) if likeness.copies]
    if copies:
        raise TrainingError(leak(found.recipe.name, copies[0], found.recipe.target_name))


def leak(recipe: str, metric: str, target: str) -> str:
    """Say what a copy is and what to do about it."""
    return (
        f"recipe {recipe}: channel `{metric}` gives the target `{target}` away: its last value alone tells it, so the "
        "model would only pass it on. Take the channel out, or predict further ahead with target.horizon"
    )


def _of_numbers(values: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    known = ~np.isnan(values) & ~np.isnan(target)
    first, second = values[known].astype(np.float64), target[known].astype(np.float64)
    if len(first) < _FEWEST or not first.std() or not second.std():
        return 0.0
    return float(abs(np.corrcoef(first, second)[0, 1]))


def _of_classes(values: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    known = ~np.isnan(values)
    if np.count_nonzero(known) < _FEWEST:
        return 0.0
    told = [abs(2 * auc(target[known] == code, values[known].astype(np.float64)) - 1) for code in np.unique(target)]
    return float(np.nanmin(told)) if not np.isnan(told).all() else 0.0
