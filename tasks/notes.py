"""What a person should know before believing the figures: leaks, drift up to the test, and what is not in it.

Each note is one sentence with its numbers. They are logged with the run and stand in the model card.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.metrics import LOWER_IS_BETTER
from tasks.candidates.learner import Matrix
from tasks.examples import Examples
from tasks.fitting import Fitted
from tasks.leaks import Likeness, likenesses, tell
from tasks.matrix import features

_ROWS: Final = 4_000  # windows of each part whose features are compared
_FEWEST: Final = 100  # below, two distributions may lie apart by chance
_NAMED: Final = 4
_FAR_BETTER: Final = 0.3  # share of the error that a random split hides before it is worth a warning


def notes(fitted: Fitted) -> tuple[str, ...]:
    """Return what is to be said of a fitted candidate."""
    found = fitted.found
    return (*_leaks(fitted), *_shifts(fitted), *_absent(found), *random_split(fitted))


def random_split(fitted: Fitted) -> tuple[str, ...]:
    """Say if a random split would have looked better by far."""
    metric, algorithm = fitted.recipe.promotion.metric, fitted.candidate.algorithm
    own, drawn = fitted.random_split
    losses = (own, drawn) if metric in LOWER_IS_BETTER else (1 - own, 1 - drawn)
    if not losses[1] < (1 - _FAR_BETTER) * losses[0]:
        return ()
    return (
        f"A random split would have looked better by far: {metric} {drawn:.4g} in place of {own:.4g} (a small "
        f"{algorithm} on each). Neighbouring windows are alike, so that figures from random splits say little about "
        "what is to come.",
    )


def gaps(first: Matrix, second: Matrix) -> NDArray[np.float64]:
    """Return how far two samples lie apart, column by column: Kolmogorov and Smirnov's distance, 0 to 1.

    Missing values count as above all others, as `domain.drift` has it.

    Args:
        first: [N, F] float32.
        second: [M, F] float32.
    """
    found = np.zeros(first.shape[1])
    for column in range(len(found)):
        mine, other = (np.sort(np.nan_to_num(each[:, column], nan=np.inf)) for each in (first, second))
        both = np.concatenate([mine, other])
        shares = (np.searchsorted(each, both, side="right") / len(each) for each in (mine, other))
        found[column] = np.abs(np.subtract(*shares)).max(initial=0)
    return found


def _leaks(fitted: Fitted) -> list[str]:
    """Channels and features of which a single one nearly tells the target."""
    suspects = [like for like in likenesses(fitted.found) if like.suspect]
    texts = [_suspicion("Channel", suspects)] if suspects else []
    materials = fitted.materials
    if fitted.recipe.target.kind == "anomaly" or suspects:
        return texts
    rows = _some(np.arange(len(materials.train)))
    matrix, target = materials.train_features[rows], materials.train_target[rows]
    each = [
        Likeness(name, tell(fitted.recipe, matrix[:, column], target)) for column, name in enumerate(materials.names)
    ]
    close = [like for like in each if like.suspect]
    return [_suspicion("Feature", close)] if close else []


def _suspicion(what: str, suspects: list[Likeness]) -> str:
    ranked = sorted(suspects, key=lambda like: -like.share)
    named = ", ".join(f"`{like.metric}` ({like.share:.3f} of 1)" for like in ranked[:_NAMED])
    more = f" and {len(ranked) - _NAMED} more" if len(ranked) > _NAMED else ""
    return f"{what} {named}{more} alone nearly tells the target: is it known before the target is?"


def _shifts(fitted: Fitted) -> list[str]:
    """Channels and features whose distribution differs between what was learnt from and what judged."""
    recipe, found, limit = fitted.recipe, fitted.found, fitted.recipe.drift.limit
    learnt = np.sort(np.concatenate([fitted.materials.train, fitted.materials.validation]))
    before, after = _some(learnt), _some(fitted.test)
    if min(len(before), len(after)) < _FEWEST:
        return []
    texts = []
    channels = gaps(found.newest(before).T, found.newest(after).T)
    apart = {name: gap for name, gap in zip(recipe.inputs, channels, strict=True) if gap > limit}
    if apart:
        texts.append(_shift("channel", apart, limit))
    else:
        each = gaps(_features(fitted, before), features(found, after))
        apart = {name: gap for name, gap in zip(fitted.materials.names, each, strict=True) if gap > limit}
        texts += [_shift("feature", apart, limit)] if apart else []
    targets = float(gaps(found.target[before, None], found.target[after, None])[0])
    return texts + ([_shift("target", {recipe.target_name: targets}, limit)] if targets > limit else [])


def _features(fitted: Fitted, rows: NDArray[np.int64]) -> Matrix:
    """Features of windows that learnt or chose, which are there already."""
    materials = fitted.materials
    used = np.concatenate([materials.train, materials.validation])
    order = np.argsort(used)
    places = order[np.searchsorted(used, rows, sorter=order)]
    first = places < len(materials.train)
    matrix = np.empty((len(rows), len(materials.names)), dtype=np.float32)
    matrix[first] = materials.train_features[places[first]]
    matrix[~first] = materials.validation_features[places[~first] - len(materials.train)]
    return matrix


def _shift(what: str, apart: Mapping[str, float], limit: float) -> str:
    ranked = sorted(apart.items(), key=lambda item: -item[1])
    named = ", ".join(f"`{name}` ({gap:.2f})" for name, gap in ranked[:_NAMED])
    more = f" and {len(ranked) - _NAMED} more" if len(ranked) > _NAMED else ""
    return (
        f"From learning to judging, the distribution of {what} {named}{more} shifts by more than {limit:g} (distance "
        "of Kolmogorov and Smirnov): the figures hold for other conditions than were learnt."
    )


def _absent(found: Examples) -> list[str]:
    """Devices and classes of which the held-out windows say nothing."""
    test = found.chosen("test")
    there = np.bincount(found.device[test], minlength=len(found.devices))
    bare = [name for name, count in zip(found.devices, there, strict=True) if not count]
    texts = []
    if bare and found.recipe.split.by != "device":
        named = ", ".join(bare[:_NAMED]) + (f" and {len(bare) - _NAMED:,} more" if len(bare) > _NAMED else "")
        texts.append(f"No held-out window is of device {named}: nothing is known of how the model does there.")
    judged = np.unique(found.target[test])
    missing = [f"`{name}`" for code, name in enumerate(found.recipe.classes) if code not in judged]
    if missing:
        texts.append(
            f"No held-out window is of class {', '.join(missing)}: what auc and average_precision say leaves it out."
        )
    return texts


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `_ROWS` of them, spread evenly."""
    number = min(_ROWS, len(rows))
    return rows[np.arange(number) * len(rows) // max(number, 1)]
