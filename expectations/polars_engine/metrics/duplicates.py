"""Rows that are there twice, found in little memory.

Every row's hash is computed and sorted; equal neighbours are candidates; only the candidates' values are compared. As
equal values have equal hashes the outcome is exact, and where nothing is there twice no value is ever compared.
"""

import functools
import operator

import polars as pl

from expectations.polars_engine.domain import count, within
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


_NUMBERS = pl.UInt32


def _hash(columns: tuple[pl.Expr, ...]) -> pl.Expr:
    """Return a hash of each row's values; columns are hashed apart, at half the cost of hashing them as a struct."""
    hashes = (column.hash(seed) for seed, column in enumerate(columns))
    return functools.reduce(operator.xor, hashes)


def _find(batch: Batch, columns: tuple[pl.Expr, ...], considered: pl.Expr | None) -> pl.Series:
    """Find duplicates by hash, then by value."""
    hashes = within(_hash(columns), considered).alias("hash")
    ordered = batch.lazy([hashes]).select(pl.col("hash").sort())
    repeated = ordered.filter(pl.col("hash") == pl.col("hash").shift(1)).unique().collect(engine="streaming")
    if not repeated.height:
        return pl.Series(dtype=_NUMBERS)
    numbers = within(pl.int_range(pl.len(), dtype=_NUMBERS), considered).alias("number")
    values = within(pl.struct(columns), considered).alias("values")
    candidates = batch.lazy([numbers, hashes, values]).join(repeated.lazy(), on="hash", how="semi")
    found = candidates.collect(engine="streaming").filter(pl.col("values").is_duplicated())
    return found["number"].sort()
