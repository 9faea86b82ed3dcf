"""Suites made from a reference data set in the lake: per metric bounds or values, and least shares."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import polars as pl

from expectations.profiles import read_profile
from expectations.references import MetricSuite, Reference, SuiteDocument
from fieldloop.domain.errors import ValidationError
from fieldloop.domain.recipe import load_recipe
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings

TAIL: Final = 0.001  # share of the values beyond each bound, before the margin
FEW_VALUES: Final = 8  # up to which the values themselves are the bounds
DIGITS: Final = 4


def make_suite(
    settings: Settings,
    name: str,
    profile: str,
    since: datetime | None = None,
    until: datetime | None = None,
    devices: Sequence[str] = (),
    version: int | None = None,
    margin: float = 0.1,
) -> SuiteDocument:
    """Return what a profile's devices showed, as a suite.

    Args:
        settings: where the lake and the profiles are.
        name: the suite's.
        profile: whose devices.
        since: event time from which on; from the beginning where left out.
        until: event time before which; to the end where left out.
        devices: only these; all of the profile where empty.
        version: of table `readings`; the newest where left out.
        margin: how far bounds are widened, as a share of their distance, and shares lowered.

    Raises:
        DocumentError: there is no usable profile of that name.
        ValidationError: a device is not of the profile, or there is no reading.
    """
    lake = Lake(settings)
    version = lake.version("readings") if version is None else version
    channels = [channel.metric for channel in read_profile(settings.root, profile).channels]
    of_profile = [device for device, its in fleet.devices(lake).items() if its == profile]
    if strangers := sorted(set(devices) - set(of_profile)):
        raise ValidationError(f"not enrolled under profile {profile}: {', '.join(strangers)}")
    wanted = [pl.col("device").is_in(devices or of_profile), pl.col("metric").is_in(channels)]
    wanted += [pl.col("event_time") >= since] if since else []
    wanted += [pl.col("event_time") < until] if until else []
    readings = lake.scan("readings", version).filter(wanted)
    rows = _rows_of_devices(readings)
    if version is None or rows.is_empty():
        raise ValidationError(f"no reading of profile {profile} between {since or 'ever'} and {until or 'now'}")
    metrics = [_metric(readings, rows, metric, margin) for metric in channels]
    reference = Reference(
        table_version=version,
        devices=tuple(rows["device"]),
        since=since or rows["first"].min(),
        until=until or rows["last"].max(),
        readings=int(rows["readings"].sum()),
    )
    known = tuple(metric for metric in metrics if metric)
    return SuiteDocument(name=name, profile=profile, reference=reference, metrics=known)


def training_until(settings: Settings, recipe: str) -> datetime:
    """Return the time before which a recipe's readings train.

    Raises:
        DocumentError: there is no usable recipe of that name.
        ValidationError: it is not split by time.
    """
    split = load_recipe(settings.root, recipe).split
    if split.by != "time":
        raise ValidationError(f"recipe {recipe} is split by {split.by}, not by time; give --until")
    return split.train_until


def _rows_of_devices(readings: pl.LazyFrame) -> pl.DataFrame:
    """Return a row a device: its rows, its readings, and the first and last event time."""
    time = pl.col("event_time")
    found = readings.group_by("device").agg(rows=time.n_unique(), readings=pl.len(), first=time.min(), last=time.max())
    return found.sort("device").collect(engine="streaming")


def _metric(readings: pl.LazyFrame, rows: pl.DataFrame, metric: str, margin: float) -> MetricSuite | None:
    """Return what one metric showed; None where the reference has none of it."""
    frame = readings.filter(pl.col("metric") == metric).select("device", "value").collect()
    if frame.is_empty():
        return None
    values = frame["value"]
    few = values.unique().sort().to_list() if values.n_unique() <= FEW_VALUES else None
    suite = MetricSuite(
        metric=metric,
        complete=_least(
            frame.group_by("device")
            .len()
            .join(rows, on="device", how="right")
            .select(pl.col("len").fill_null(0) / pl.col("rows")),
            margin,
        ),
        bounds=None if few else _bounds(values, margin),
        values=few,
        usual=1.0,
    )
    shares = frame.rename({"value": metric}).group_by("device").agg(suite.is_usual().mean()).select(metric)
    return suite.model_copy(update={"usual": _least(shares, margin)})


def _least(shares: pl.DataFrame, margin: float) -> float:
    """Return the median device's share less the margin: a bad device in the reference does not lower it."""
    return max(round((shares.select(pl.nth(0).median()).item() or 0.0) * (1 - margin), DIGITS), 10**-DIGITS)


def _bounds(values: pl.Series, margin: float) -> tuple[float, float]:
    """Return the quantiles between which nearly all values lie, widened by the margin."""
    low, high = (float(values.quantile(share) or 0) for share in (TAIL, 1 - TAIL))
    if low == high:
        low, high = float(min(values)), float(max(values))
    wider = margin * (high - low)
    return float(f"{low - wider:.6g}"), float(f"{high + wider:.6g}")
