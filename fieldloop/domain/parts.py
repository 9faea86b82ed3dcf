"""To which part of a split each window belongs, by the recipe alone: the same answer whoever asks.

    learnt from: train → choosing among what was learnt: validation → judging what was chosen: test

Whatever reaches across a border, with its steps or with what its target looks ahead, is embargo and belongs to none.
"""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.recipe.part import to_us
from fieldloop.domain.recipe.recipe import Recipe
from fieldloop.domain.recipe.split import AtRandom, ByDevice, ByHistory, ByRun, ByTime
from fieldloop.domain.recipe.target import Anomaly

PartName = Literal["train", "validation", "test"]
PARTS: Final[tuple[PartName, ...]] = get_args(PartName)
NO_RUN: Final = -1  # run of a window that holds steps of two

Parts = NDArray[np.str_]


def parts(
    recipe: Recipe,
    devices: Sequence[str],
    device: NDArray[np.int32],
    end_us: NDArray[np.int64],
    run_us: NDArray[np.int64],
) -> Parts:
    """Return "train", "validation", "test" or "" (embargo or later) for each window.

    Args:
        recipe: how windows are split, how long they are and how far their target looks ahead.
        devices: [D] names.
        device: [N] int32, into `devices`.
        end_us: [N] int64, start of the windows' last step, UTC microseconds.
        run_us: [N] int64, start of the run that a window belongs to, `NO_RUN` across two; read for a split by run.

    Returns:
        [N] str.
    """
    split = recipe.split
    match split:
        case ByTime():
            return _by_time(recipe, split, end_us)
        case ByDevice():
            return _by_device(recipe, split, devices, device, end_us)
        case ByHistory():
            return _by_history(recipe, split, device, end_us)
        case ByRun():
            keys = [f"{devices[code]}/{run}" for code, run in zip(device.tolist(), run_us.tolist(), strict=True)]
            return np.where(run_us == NO_RUN, "", _by_lot(keys, split.test_share, split.validation_share))
        case AtRandom():
            keys = [f"{devices[code]}/{end}" for code, end in zip(device.tolist(), end_us.tolist(), strict=True)]
            return _by_lot(keys, split.test_share, split.validation_share)


def runs(recipe: Recipe, steps: NDArray[np.int64], number: NDArray[np.float32] | None) -> NDArray[np.int64]:
    """Return for each window of one device the start of its run, `NO_RUN` where it holds steps of two.

    Args:
        recipe: when a run begins; without a split by run, all of a device is one.
        steps: [S] int64, steps of the device's grid, increasing.
        number: [S] float32, the channel that numbers the runs; None where gaps part them.

    Returns:
        [S] int64, UTC microseconds, for a window that ends at each of the steps.
    """
    split = recipe.split
    if not isinstance(split, ByRun) or not len(steps):
        return np.zeros(len(steps), dtype=np.int64)
    new = np.zeros(len(steps), dtype=bool)
    if number is None:
        new[1:] = np.diff(steps) > (split.gap_steps or 0)
    else:
        known = np.flatnonzero(~np.isnan(number))
        new[known[1:]] = np.diff(number[known]) != 0
    new[0] = True
    begin = steps[np.flatnonzero(new)[np.cumsum(new) - 1]]
    whole = steps - recipe.window.length + 1 >= begin
    return np.where(whole, begin * recipe.step_us, NO_RUN)


def _by_time(recipe: Recipe, split: ByTime, end_us: NDArray[np.int64]) -> Parts:
    train_until, test_until = to_us(split.train_until), to_us(split.test_until)
    if split.validate_from is not None:
        validate_from = to_us(split.validate_from)
    else:
        first = int(end_us.min(initial=train_until))
        validate_from = train_until - int((train_until - first) * split.validation_share)
        validate_from -= validate_from % recipe.step_us
    borders = (np.iinfo(np.int64).min // 2, validate_from, train_until, test_until)
    return _between(recipe, borders, end_us, PARTS)


def _by_device(
    recipe: Recipe, split: ByDevice, devices: Sequence[str], device: NDArray[np.int32], end_us: NDArray[np.int64]
) -> Parts:
    found = np.full(len(end_us), "train", dtype="<U10")
    for code, name in enumerate(devices):
        mine = device == code
        if _is_one_of(name, split.test):
            found[mine] = "test"
        elif split.validation:
            found[mine] = "validation" if _is_one_of(name, split.validation) else "train"
        elif mine.any():
            ends = end_us[mine]
            later = ends[int(len(ends) * (1 - split.validation_share))]
            low, high = np.iinfo(np.int64).min // 2, np.iinfo(np.int64).max // 2
            found[mine] = _between(recipe, (low, int(later), high), ends, ("train", "validation"))
    return found


def _by_history(recipe: Recipe, split: ByHistory, device: NDArray[np.int32], end_us: NDArray[np.int64]) -> Parts:
    found = np.full(len(end_us), "", dtype="<U10")
    low, high = np.iinfo(np.int64).min // 2, np.iinfo(np.int64).max // 2
    shares = (split.train_share, split.train_share + split.validation_share)
    between = _ending_between if isinstance(recipe.target, Anomaly) else _between
    for code in np.unique(device):
        mine = device == code
        ends = end_us[mine]
        number = len(ends) if split.most is None else min(len(ends), split.most)
        borders = [int(ends[int(number * share)]) for share in shares]
        found[mine] = between(recipe, (low, *borders, high), ends, PARTS)
    return found


def _between(recipe: Recipe, borders: tuple[int, ...], end_us: NDArray[np.int64], names: Sequence[PartName]) -> Parts:
    """Part of each window that lies, with its past and what its target looks ahead, between two borders."""
    first = end_us - (recipe.window.length - 1) * recipe.step_us
    until = end_us + (1 + recipe.lookahead) * recipe.step_us
    found = np.full(len(end_us), "", dtype="<U10")
    for name, low, high in zip(names, borders[:-1], borders[1:], strict=True):
        found[(first >= low) & (until <= high)] = name
    return found


def _ending_between(
    recipe: Recipe, borders: tuple[int, ...], end_us: NDArray[np.int64], names: Sequence[PartName]
) -> Parts:
    """Part of each window that ends between two borders, whatever it reads: nothing was learnt of its label.

    Of anomalies no label is learnt, and in a device's own history what is behind a border is all that a stream has.
    """
    places = np.searchsorted(np.array(borders), end_us, side="right") - 1
    return np.array(names, dtype="<U10")[places]


def _by_lot(keys: Sequence[str], test_share: float, validation_share: float) -> Parts:
    """Part by a number in [0, 1) that follows from the key alone."""
    lots = {key: _lot(key) for key in set(keys)}
    drawn = np.array([lots[key] for key in keys], dtype=np.float64)
    names = np.where(drawn < test_share + validation_share, "validation", "train")
    return np.where(drawn < test_share, "test", names)


def _lot(key: str) -> float:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64


def _is_one_of(device: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(device, pattern) for pattern in patterns)
