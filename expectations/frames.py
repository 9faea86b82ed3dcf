"""The two frames that suites look at: a row a device and time, and a row a device with its own shares.

A suite over all rows cannot see that one device of a hundred is broken, nor name it; a suite over a row a device can.
"""

import polars as pl

from expectations.profiles import ProfileDocument, duration_us
from fieldloop.domain.profile import Profile

KEYS = ("device", "event_time")


def wide_frame(readings: pl.DataFrame, profile: Profile) -> pl.DataFrame:
    """Return one row a (device, event time), with the profile's metrics as columns.

    Args:
        readings: columns device, metric, event_time, value; other metrics than the profile's are left out.
        profile: gives the columns and their order.

    Returns:
        columns device, event_time and a Float64 a metric, null where there is no value, sorted by device and time. A
        reading that is there twice makes a second row, for the suite to find.
    """
    key = ("device", "event_time", "metric")
    distinct = readings.select(pl.struct(key).n_unique()).item()
    copy = pl.lit(0) if distinct == readings.height else pl.int_range(pl.len()).over(key)
    values = [pl.col("value").filter(pl.col("metric") == metric).first().alias(metric) for metric in profile.metrics()]
    keyed = readings.with_columns(copy.alias("copy"))
    return keyed.group_by(*KEYS, "copy").agg(values).drop("copy").sort(KEYS)


def device_frame(wide: pl.DataFrame, parsed: ProfileDocument) -> pl.DataFrame:
    """Return one row a device with its own shares.

    Args:
        wide: as `wide_frame` returns it.
        parsed: gives the plausible ranges and the time after which a channel without change is dead.

    Returns:
        columns device, rows, and a metric `<metric>_complete` (share of rows with a value), `<metric>_plausible`
        (share of values in the plausible range, or in the range where the profile gives no plausible one) and
        `<metric>_spread` (largest minus smallest value; null where the device's rows span less than `dead_after`).
    """
    dead_after = pl.duration(microseconds=duration_us(parsed.quality.dead_after))
    long_enough = pl.col("event_time").max() - pl.col("event_time").min() >= dead_after
    shares: list[pl.Expr] = [pl.len().alias("rows")]
    for channel in parsed.channels:
        value = pl.col(channel.metric)
        shares.append((value.count() / pl.len()).alias(f"{channel.metric}_complete"))
        within = value.is_between(*(channel.plausible or channel.range))
        shares.append(within.mean().alias(f"{channel.metric}_plausible"))
        shares.append(pl.when(long_enough).then(value.max() - value.min()).alias(f"{channel.metric}_spread"))
    return wide.group_by("device").agg(shares).sort("device")
