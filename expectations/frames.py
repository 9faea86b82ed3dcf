"""The frames that suites look at: a row a device and time, and a row a device with its own shares.

A suite over all rows cannot see that one device of a hundred is broken, nor name it; a suite over a row a device can.
What a device's shares are made of (`device_counts`) is counted chunk by chunk: counts add up, and a smallest value of
chunks is that of all, so the outcome does not depend on how readings are cut into chunks.
"""

from collections.abc import Sequence

import polars as pl

from expectations.profiles import ProfileDocument, duration_us
from expectations.references import MetricSuite, usual_shares
from fieldloop.domain.profile import Profile

KEYS = ("device", "event_time")


def wide_frame(readings: pl.DataFrame, profile: Profile) -> pl.DataFrame:
    """Return one row a (device, event time), with the profile's metrics as columns.

    Args:
        readings: columns device, metric, event_time, value; other metrics than the profile's make rows without values.
        profile: gives the columns and their order.

    Returns:
        columns device, event_time and a Float64 a metric, null where there is no value, sorted by device and time. A
        reading that is there twice makes a second row, for the suite to find.
    """
    metrics = list(profile.metrics())
    wide = _pivoted(readings, metrics, KEYS)
    values = readings.filter(pl.col("metric").is_in(metrics))["value"].count()
    if sum(wide[metric].count() for metric in metrics) < values:
        copy = pl.int_range(pl.len()).over(*KEYS, "metric").alias("copy")
        wide = _pivoted(readings.with_columns(copy), metrics, (*KEYS, "copy")).drop("copy")
    return wide


def device_counts(wide: pl.DataFrame, parsed: ProfileDocument, reference: Sequence[MetricSuite] = ()) -> pl.DataFrame:
    """Return one row a device with what its shares are made of, in this chunk.

    Args:
        wide: as `wide_frame` returns it.
        parsed: gives the plausible ranges.
        reference: gives what is usual, where there is a suite from a data set.

    Returns:
        columns device, rows, first, last (event times) and a metric `<metric>_count`, `<metric>_within`,
        `<metric>_least`, `<metric>_most`; `<metric>_usual` for those of the reference.
    """
    time = pl.col("event_time")
    found: list[pl.Expr] = [pl.len().alias("rows"), time.min().alias("first"), time.max().alias("last")]
    for channel in parsed.channels:
        value, metric = pl.col(channel.metric), channel.metric
        found.append(value.count().alias(f"{metric}_count"))
        found.append(value.is_between(*(channel.plausible or channel.range)).sum().alias(f"{metric}_within"))
        found += [value.min().alias(f"{metric}_least"), value.max().alias(f"{metric}_most")]
    found += [each.is_usual().sum().alias(f"{each.metric}_usual") for each in reference]
    return wide.group_by("device").agg(found).sort("device")


def merge_counts(chunks: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the counts of all chunks together.

    Args:
        chunks: as `device_counts` returns them, at least one, of which no two share a (device, event time).
    """
    names = chunks[0].columns[1:]
    least = [name for name in names if name == "first" or name.endswith("_least")]
    most = [name for name in names if name == "last" or name.endswith("_most")]
    counts = [name for name in names if name not in (*least, *most)]
    merged = pl.concat(chunks).group_by("device").agg(pl.col(counts).sum(), pl.col(least).min(), pl.col(most).max())
    return merged.sort("device").select(chunks[0].columns)


def device_frame(counts: pl.DataFrame, parsed: ProfileDocument, reference: Sequence[MetricSuite] = ()) -> pl.DataFrame:
    """Return one row a device with its own shares.

    Args:
        counts: as `device_counts` or `merge_counts` returns them.
        parsed: gives the channels and the time after which a channel without change is dead.
        reference: that by which was counted.

    Returns:
        columns device, rows, and a metric `<metric>_complete` (share of rows with a value), `<metric>_plausible`
        (share of values in the plausible range, or in the range where the profile gives no plausible one; null where
        there is no value) and `<metric>_spread` (largest minus smallest value; null where the device's rows span less
        than `dead_after`); and `<metric>_usual` as `references.usual_shares` says.
    """
    dead_after = pl.duration(microseconds=duration_us(parsed.quality.dead_after))
    long_enough = pl.col("last") - pl.col("first") >= dead_after
    shares: list[pl.Expr] = []
    for metric in (channel.metric for channel in parsed.channels):
        count = pl.col(f"{metric}_count")
        spread = pl.col(f"{metric}_most") - pl.col(f"{metric}_least")
        shares.append((count / pl.col("rows")).alias(f"{metric}_complete"))
        shares.append((pl.col(f"{metric}_within") / count).fill_nan(None).alias(f"{metric}_plausible"))
        shares.append(pl.when(long_enough).then(spread).alias(f"{metric}_spread"))
    return counts.select("device", "rows", *shares, *usual_shares(counts, reference))


def _pivoted(readings: pl.DataFrame, metrics: Sequence[str], keys: Sequence[str]) -> pl.DataFrame:
    """Turn readings, at most one a metric and key, into a row a key."""
    value = pl.col("value")
    columns = [pl.when(pl.col("metric") == metric).then(value).alias(metric) for metric in metrics]
    grouped = readings.lazy().select(*keys, *columns).group_by(keys).agg(pl.col(metrics).max())
    return grouped.sort(keys).collect(engine="streaming")
