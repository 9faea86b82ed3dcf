"""Rows that are there twice, found in little memory.

Every row's hash is computed and sorted; equal neighbours are candidates; only the candidates' values are compared. As
equal values have equal hashes the outcome is exact. Hashes of 32 bits take half the memory and time of longer ones: of
10 M different rows some 20,000 become candidates by chance.
"""

import functools
import operator
from typing import Final

import polars as pl

from expectations.polars_engine.domain import count
from expectations.polars_engine.masks import fingerprint
from expectations.polars_engine.plans import Batch


def duplicate_rows(batch: Batch, columns: tuple[pl.Expr, ...], considered: pl.Expr | None) -> pl.Series:
    """Return the numbers of rows of which there is another with the same values, ascending; found once a batch.

    Args:
        batch: the data.
        columns: whose values are compared, missing ones as nulls, which equal each other.
        considered: which rows count; None for all.
    """
    key = tuple(fingerprint(one) for one in (*columns, count(considered)))
    if key not in batch.duplicates:
        batch.duplicates[key] = _find(batch, columns, considered)
    return batch.duplicates[key]


_NUMBERS: Final = pl.UInt32
_SHORT_ROWS: Final = 1 << 27  # beyond, by chance too many of the short hashes would be equal


def _hash(columns: tuple[pl.Expr, ...]) -> pl.Expr:
    """Return a hash of each row's values; columns are hashed apart, at half the cost of hashing them as a struct."""
    hashes = (column.hash(seed) for seed, column in enumerate(columns))
    return functools.reduce(operator.xor, hashes)


def _find(batch: Batch, columns: tuple[pl.Expr, ...], considered: pl.Expr | None) -> pl.Series:
    """Find duplicates by hash, then by value."""
    hashed = _hashed(batch, columns, considered)
    ordered = hashed.drop_nulls().sort()
    repeated = ordered.filter(ordered == ordered.shift(1)).unique()
    if repeated.is_empty():
        return pl.Series(dtype=_NUMBERS)
    numbers = hashed.is_in(repeated.implode()).fill_null(False).arg_true().cast(_NUMBERS)
    return numbers.filter(batch.rows_of(numbers, columns).is_duplicated())


def _hashed(batch: Batch, columns: tuple[pl.Expr, ...], considered: pl.Expr | None) -> pl.Series:
    """Return each row's hash; null where the row does not count."""
    hashes = _hash(columns) if considered is None else pl.when(considered).then(_hash(columns))
    hashed = batch.lazy([hashes.alias("hash")]).collect(engine="streaming")["hash"]
    return hashed.cast(pl.UInt32, wrap_numerical=True) if len(hashed) <= _SHORT_ROWS else hashed
