"""What validation has not judged yet: found a device at a time, read in chunks that share no (device, event time)."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

import polars as pl

from expectations.profiles import ProfileDocument, read_profile
from expectations.references import SuiteDocument, read_suite
from fieldloop.domain.errors import ValidationError
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings

NAMED_DEVICES: Final = 100  # devices that a text lists by name
CHUNK_READINGS: Final = 2_000_000  # read at a time, about: some 200 bytes of memory each


@dataclass(frozen=True)
class Span:
    """One device's new readings.

    Attributes:
        device: the device.
        after: position in the broker's stream behind which they begin.
        until: position of the last.
        replayed_after: replay out of quarantine behind which what it brought is new, whatever its position.
        replayed_until: the last such replay.
    """

    device: str
    after: int
    until: int
    replayed_after: int = 0
    replayed_until: int = 0


@dataclass(frozen=True)
class SetAside:
    """A device whose readings are kept out of training, and why."""

    device: str
    reason: str


@dataclass(frozen=True)
class NewReadings:
    """What is to be judged, as a reference.

    Attributes:
        run_id: names the report.
        profile: the devices' profile.
        contract: digest of the profile as it is written; empty where only some devices were asked for, since the
            others have not been judged by it then.
        table_version: version of table `readings`; None where there is no table yet.
        known: the devices enrolled under the profile.
        spans: the devices with something to judge; empty means nothing new.
        passed: the devices that passed when last judged.
        set_aside: those that failed then.
        report_url: the newest earlier report; empty where there is none.
        suite: the suite from a data set; where None, the one of the profile's name, if there is one.
    """

    run_id: str
    profile: str
    contract: str
    table_version: int | None
    known: tuple[str, ...]
    spans: tuple[Span, ...]
    passed: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    report_url: str
    suite: str | None = None


def find_new(
    settings: Settings, profile: str, devices: Sequence[str] | None, run_id: str, suite: str | None = None
) -> NewReadings:
    """Find the readings that came since each device last passed.

    Args:
        settings: where the lake is.
        profile: the profile's name.
        devices: only these; None or none means all that are enrolled under the profile.
        run_id: names the report.
        suite: the suite from a data set; where None, the one of the profile's name, if there is one.

    Raises:
        DocumentError: there is no usable profile or suite of that name.
        ValidationError: a device is asked for that is enrolled under another profile, or not at all.
    """
    lake = Lake(settings)
    contract = _digest(read_profile(settings.root, profile), read_suite(settings.root, profile, suite))
    known = [device for device, name in fleet.devices(lake).items() if name == profile]
    if strangers := sorted(set(devices or ()) - set(known)):
        raise ValidationError(f"not enrolled under profile {profile}: {', '.join(strangers)}; there are {named(known)}")
    version = lake.version("readings")
    newest = _newest(lake).filter(pl.col("device").is_in(known))
    received = _received(lake, version).filter(pl.col("device").is_in(devices or known))
    mended = _contract_of_last_run(lake, profile) != contract
    failed = newest.filter(~pl.col("passed"))
    return NewReadings(
        run_id=run_id,
        profile=profile,
        contract="" if devices else contract,
        table_version=version,
        known=tuple(known),
        spans=_spans(received, newest, mended),
        passed=tuple(newest.filter("passed")["device"]),
        set_aside=tuple(SetAside(*row) for row in failed.select("device", "reason").iter_rows()),
        report_url=str(newest.sort("validated_at")["report_url"].last() or "") if newest.height else "",
        suite=suite,
    )


def contract_key(profile: str) -> str:
    """Return the commit metadata's key under which a profile's digest is kept."""
    return f"contract.{profile}"


def named(devices: Sequence[str]) -> str:
    """Name devices, the first hundred."""
    more = len(devices) - NAMED_DEVICES
    return ", ".join(devices[:NAMED_DEVICES]) + (f" and {more:,} more" if more > 0 else "")


def _digest(parsed: ProfileDocument, suite: SuiteDocument | None) -> str:
    """Return what changes when the profile or the suite does."""
    text = parsed.model_dump_json() + (suite.model_dump_json() if suite else "")
    return hashlib.sha256(text.encode()).hexdigest()


def _contract_of_last_run(lake: Lake, profile: str) -> str | None:
    """Return the digest of the profile by which devices were last judged."""
    key = contract_key(profile)
    return next((commit[key] for commit in lake.metadata("validations") if key in commit), None)


def _newest(lake: Lake) -> pl.DataFrame:
    """Return a row a device: its newest outcome, the last position and the last replay with which it passed."""
    passed = pl.col("last_sequence", "last_replay").filter(pl.col("passed")).max().name.prefix("passed_")
    ordered = lake.scan("validations").sort("validated_at").group_by("device")
    return ordered.agg(pl.exclude("device").last(), passed).sort("device").collect()


def _received(lake: Lake, version: int | None) -> pl.DataFrame:
    """Return a row a device: `until` and `replayed_until`, the last position and replay that it has in the lake."""
    last = {"until": pl.col("sequence").max(), "replayed_until": pl.col("replay").max()}
    return lake.scan("readings", version).group_by("device").agg(**last).sort("device").collect()


def _spans(received: pl.DataFrame, newest: pl.DataFrame, mended: bool) -> tuple[Span, ...]:
    """Return what is to be judged: devices with new readings, and after a changed profile those that had failed."""
    state = received.join(newest, on="device", how="left")
    later = (pl.col("until") > pl.col("last_sequence")) | (pl.col("replayed_until") > pl.col("last_replay"))
    is_new = pl.col("last_sequence").is_null() | later
    due = state.filter(is_new | (~pl.col("passed") & pl.lit(mended))).sort("device")
    after = {"after": "passed_last_sequence", "replayed_after": "passed_last_replay"}
    rows = due.select(
        "device", "until", "replayed_until", **{name: pl.col(column).fill_null(0) for name, column in after.items()}
    )
    return tuple(Span(**row) for row in rows.to_dicts())


def read_chunks(lake: Lake, new: NewReadings, most: int = CHUNK_READINGS) -> Iterator[pl.DataFrame]:
    """Yield the readings of all spans, in order of time and at most about so many at once.

    Args:
        lake: where they are.
        new: what `find_new` found.
        most: readings of a chunk; a single minute's more than that stay together.

    Yields:
        columns device, metric, event_time, value; a (device, event time) is in one chunk alone. At least one chunk.
    """
    for begin, end in _cuts(lake, new, most):
        yield _unjudged(lake, new, begin, end).select("device", "metric", "event_time", "value").collect()


def _cuts(lake: Lake, new: NewReadings, most: int) -> list[tuple[datetime | None, datetime | None]]:
    """Return spans of time, side by side and open at both ends, that hold about so many readings each."""
    minute = pl.col("event_time").dt.truncate("1m").alias("minute")
    minutes = _unjudged(lake, new).group_by(minute).len().sort("minute").collect(engine="streaming")
    chunk = ((pl.col("len").cum_sum() - 1) // most).alias("chunk")
    begins = minutes.group_by(chunk).agg(pl.col("minute").min())["minute"].sort().to_list()
    edges = [None, *begins[1:], None]
    return list(itertools.pairwise(edges))


def _unjudged(lake: Lake, new: NewReadings, begin: datetime | None = None, end: datetime | None = None) -> pl.LazyFrame:
    """Return the readings of all spans whose event time is not before `begin` and before `end`."""
    spans = pl.LazyFrame([asdict(span) for span in new.spans])
    came = [(pl.col("sequence") > min(span.after for span in new.spans)) | (pl.col("replay") > 0)]
    came += [pl.col("event_time") >= begin] if begin else []
    came += [pl.col("event_time") < end] if end else []
    unjudged = (pl.col("sequence") > pl.col("after")) | (pl.col("replay") > pl.col("replayed_after"))
    return (
        lake.scan("readings", new.table_version)
        .filter(came)
        .join(spans, on="device")
        .filter(unjudged, pl.col("sequence") <= pl.col("until"), pl.col("replay") <= pl.col("replayed_until"))
    )
