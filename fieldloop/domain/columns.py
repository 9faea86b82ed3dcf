"""Columns of raw entries to columns of numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def to_floats(entries: Sequence[object]) -> NDArray[np.float64]:
    """Return numbers ([N] float64): None and what is no number become NaN.

    Args:
        entries: [N] numbers, texts of numbers (`nan` is one), None, or anything else.
    """
    numbers = all_floats(entries)
    return np.array([_to_float(entry) for entry in entries], dtype=np.float64) if numbers is None else numbers


def all_floats(entries: Sequence[object]) -> NDArray[np.float64] | None:
    """Return what `to_floats` does, quickly, where every entry is a number or None; else None."""
    try:
        return np.array(entries, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        return None


def _to_float(entry: object) -> float:
    if isinstance(entry, int | float | str):
        try:
            return float(entry)
        except (ValueError, OverflowError):
            return np.nan
    return np.nan
