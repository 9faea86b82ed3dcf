"""Columns of raw entries, and how they become columns of numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Coded:
    """A column whose entries repeat.

    Attributes:
        codes: [N] int64, index into the entries; -1 where there is none.
        entries: the different ones: texts, booleans or numbers.
    """

    codes: NDArray[np.int64]
    entries: Sequence[object]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> object:
        code = int(self.codes[row])
        return None if code < 0 else self.entries[code]

    def __iter__(self) -> Iterator[object]:
        entries = [*self.entries, None]
        return (entries[code] for code in self.codes.tolist())


@dataclass(frozen=True)
class Stamps:
    """A column of times that are read already, as typed files and databases have them.

    Attributes:
        us: [N] int64, microseconds since 1970; NumPy's NaT where there is none.
        local: whether they are of the device's own zone; else they are UTC.
    """

    us: NDArray[np.int64]
    local: bool

    def __len__(self) -> int:
        return len(self.us)

    def __getitem__(self, row: int) -> object:
        return str(self.us[row].astype("datetime64[us]")) + ("" if self.local else "Z")

    def __iter__(self) -> Iterator[object]:
        return (self[row] for row in range(len(self)))


Column: TypeAlias = Sequence[object] | NDArray[Any] | Coded | Stamps


def to_floats(entries: Column) -> NDArray[np.float64]:
    """Return numbers ([N] float64): None and what is no number become NaN.

    Args:
        entries: [N] numbers, texts of numbers (`nan` is one), None, or anything else.
    """
    if isinstance(entries, Coded):
        return np.append(to_floats(entries.entries), np.nan)[entries.codes]
    if isinstance(entries, Stamps):
        return np.full(len(entries), np.nan)
    numbers = all_floats(entries)
    return np.array([_to_float(entry) for entry in entries], dtype=np.float64) if numbers is None else numbers


def all_floats(entries: Column) -> NDArray[np.float64] | None:
    """Return what `to_floats` does, quickly, where every entry is a number or None; else None."""
    if isinstance(entries, Coded | Stamps):
        return None
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
