"""Suites from data sets: what the devices of a reference showed, in a file that people read, change and keep.

A device is held against what the reference's values lie within, and against the fleet on the same days: weather that no
reference saw moves all devices, a broken sensor moves one. Written by `fieldloop suite make`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import polars as pl
import yaml
from pydantic import AwareDatetime, Field, model_validator

from expectations.payloads import Section
from expectations.profiles import Metric, Name, Range, Share, read_profile
from fieldloop.domain import document
from fieldloop.domain.errors import DocumentError

FOLDER = Path("expectations", "suites")
FEWEST_OF_A_FLEET = 3  # devices from which on a device is held against the others


class MetricSuite(Section):
    """What one metric of a device is expected to show.

    Attributes:
        metric: of the profile.
        complete: least share of the device's rows that have a value.
        bounds: what usual values lie within, canonical unit.
        values: the values that there are, where they are few; in place of bounds.
        usual: least share of usual values, as a share of what the fleet's median device shows in the same rows.
    """

    metric: Metric
    complete: Share
    bounds: Range | None = None
    values: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    usual: Share

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.bounds is None) == (self.values is None):
            raise ValueError(f"`{self.metric}`: expected either `bounds` or `values`")
        return self

    def is_usual(self) -> pl.Expr:
        """Return whether each value of the metric's column is usual; null where there is none."""
        column = pl.col(self.metric)
        return column.is_between(*self.bounds) if self.bounds else column.is_in(list(self.values or ()))

    def describe(self) -> str:
        """Say what is usual."""
        if self.bounds:
            return f"within {self.bounds[0]:g} to {self.bounds[1]:g}"
        return f"one of {', '.join(f'{value:g}' for value in self.values or ())}"


class Reference(Section):
    """The data set that a suite was made from: a version of table `readings`, devices and the span of event times."""

    table_version: int
    devices: tuple[str, ...]
    since: AwareDatetime
    until: AwareDatetime
    readings: int


class SuiteDocument(Section):
    """A suite as it is kept in `expectations/suites/`.

    Attributes:
        name: the file's name without its ending.
        profile: whose devices it is for.
        reference: what it was made from.
        metrics: what is expected of each.
    """

    name: Name
    profile: Name
    reference: Reference
    metrics: Annotated[tuple[MetricSuite, ...], Field(min_length=1)]


def read_suite(root: Path, profile: str, name: str | None = None) -> SuiteDocument | None:
    """Return a suite for a profile.

    Args:
        root: the repository.
        profile: the profile's name.
        name: the suite's; the one that is named as its profile where left out, if there is one.

    Raises:
        DocumentError: it is asked for by name and not there, is for another profile, or does not hold a usable suite.
    """
    path = FOLDER / f"{name or profile}.yaml"
    if not (root / path).is_file():
        if name is None:
            return None
        there = ", ".join(sorted(each.stem for each in (root / FOLDER).glob("*.yaml"))) or "none"
        raise DocumentError(f"no suite `{name}` in {FOLDER}; there are: {there}. `fieldloop suite make` makes one")
    text = (root / path).read_text()
    suite = document.load(SuiteDocument, text, str(path))
    for key, expected in (("name", name or profile), ("profile", profile)):
        if getattr(suite, key) != expected:
            at = document.line_of(text, (key,))
            raise DocumentError(f"{path}:{at}: expected `{key}: {expected}`, got {getattr(suite, key)!r}")
    known = [channel.metric for channel in read_profile(root, profile).channels]
    for number, each in enumerate(suite.metrics):
        if each.metric not in known:
            at = document.line_of(text, ("metrics", number, "metric"))
            raise DocumentError(f"{path}:{at}: profile {profile} has no metric `{each.metric}`: {', '.join(known)}")
    return suite


def write_suite(root: Path, suite: SuiteDocument) -> Path:
    """Write a suite's file, in place of an older one; return its path."""
    path = root / FOLDER / f"{suite.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "# Made from readings in the lake by `fieldloop suite make`; read it, change it, keep it with the profile.\n"
    text = yaml.safe_dump(suite.model_dump(mode="json", exclude_none=True), sort_keys=False, width=120)
    part = path.with_suffix(".part")
    part.write_text(head + text)
    part.replace(path)
    return path


def usual_shares(counts: pl.DataFrame, metrics: Sequence[MetricSuite]) -> list[pl.Expr]:
    """Return a metric `<metric>_usual`: a device's share of usual values over that of the fleet's median device.

    Args:
        counts: a row a device with columns `<metric>_usual` and `<metric>_count`.
        metrics: what is usual.

    Returns:
        expressions on `counts`; null where the device has no value, or the median device no usual one. Of fewer than
        three devices none is the fleet: there it is the share itself.
    """
    shares = [pl.col(f"{each.metric}_usual") / pl.col(f"{each.metric}_count") for each in metrics]
    fleet = [share.fill_nan(None).median() if len(counts) >= FEWEST_OF_A_FLEET else pl.lit(1.0) for share in shares]
    return [
        pl.when(usual > 0).then(share.fill_nan(None) / usual).alias(f"{each.metric}_usual")
        for each, share, usual in zip(metrics, shares, fleet, strict=True)
    ]
