"""Validation: new readings against the suites of their device profile.

Order of steps: find what is new since each device last passed (`find_new`), judge the devices and then the rest as a
whole, publish the report and record every expectation's outcome in table `checks` (`judge`), stop the line where the
whole fails (`require_passed`), else enter the outcome of each device into table `validations` (`enter`). A device that
fails is set aside: its readings stay in the lake, and are judged again with all that came since as soon as there is
more of them or the profile has changed.

Readings are taken in chunks of which no two share a (device, event time). What devices are judged by adds up exactly
over chunks; rows are spooled to a temporary folder, over which the suite of all rows then streams.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final

import polars as pl
from prefect import task
from prefect.runtime import flow_run

from expectations.frames import device_counts, device_frame, merge_counts, wide_frame
from expectations.inspection import Inspection
from expectations.profiles import ProfileDocument, compile_profile, read_profile
from expectations.references import MetricSuite, read_suite
from expectations.suites import device_expectations, reading_expectations, reference_expectations
from fieldloop.domain.errors import ValidationError
from fieldloop.stores import objects
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks.unjudged import CHUNK_READINGS, NewReadings, contract_key, find_new, read_chunks
from tasks.verdict import ValidateResult, Verdict, check_rows, failure, outcomes, result, set_aside

CONTENT_TYPES: Final = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".ico": "image/vnd.microsoft.icon",
        ".png": "image/png",
        ".svg": "image/svg+xml",
        ".otf": "font/otf",
    }
)
TIMEOUT_S: Final = 1800


@task(name="find new readings", retries=2, retry_delay_seconds=5, timeout_seconds=TIMEOUT_S)
def find_new_readings(profile: str, devices: Sequence[str] | None, suite: str | None) -> NewReadings:
    """Find what is new since each device last passed."""
    return find_new(Settings(), profile, devices, str(flow_run.id or uuid.uuid4()), suite)


@task(name="judge readings", retries=1, retry_delay_seconds=10, timeout_seconds=TIMEOUT_S)
def judge_readings(new: NewReadings) -> Verdict:
    """Run the suites, publish their report and record every expectation's outcome."""
    return judge(Settings(), new)


@task(name="enter outcomes", retries=2, retry_delay_seconds=5, timeout_seconds=TIMEOUT_S)
def enter_outcomes(new: NewReadings, verdict: Verdict) -> ValidateResult:
    """Enter each device's outcome into the lake."""
    return enter(Settings(), new, verdict)


def judge(settings: Settings, new: NewReadings, chunk_readings: int = CHUNK_READINGS) -> Verdict:
    """Run both suites over the new readings, publish their Data Docs and record the outcomes.

    Args:
        settings: where lake and reports are.
        new: what `find_new` found; not empty.
        chunk_readings: readings held in memory at a time, about; the verdict is the same for any number.

    Raises:
        StoreError: the lake cannot be read or written, or the report not be published.
    """
    parsed = read_profile(settings.root, new.profile)
    suite = read_suite(settings.root, new.profile, new.suite)
    reference = suite.metrics if suite else ()
    latest = datetime.now(UTC) + timedelta(microseconds=compile_profile(parsed).future_tolerance_us)
    with TemporaryDirectory(prefix="fieldloop-rows-") as rows, TemporaryDirectory(prefix="fieldloop-docs-") as docs:
        spooled = _spool(Lake(settings), new, parsed, reference, Path(rows), chunk_readings)
        devices = device_frame(spooled.counts, parsed, reference)
        inspection = Inspection(Path(docs), new.run_id, max(len(devices), 1))
        asked = device_expectations(parsed, new.known) + reference_expectations(reference)
        checks = inspection.run_devices("devices", devices, asked)
        bad = set_aside(checks)
        good = ~pl.col("device").is_in([refused.device for refused in bad])
        if len(devices) > len(bad):
            wanted = reading_expectations(parsed, new.known, latest)
            checks += inspection.run_rows("readings", pl.scan_parquet(spooled.files).filter(good), wanted)
        pages = {suite: page.relative_to(docs) for suite, page in inspection.build_docs().items()}
        base, links = _publish(settings, Path(docs), new, pages)
    _record(Lake(settings), new, check_rows(new, checks, devices))
    why = failure(parsed, new, bad, checks)
    return Verdict(checks, spooled.rows, spooled.readings, bad, why, f"{base}/index.html", links)


def require_passed(verdict: Verdict) -> None:
    """Stop the line where the data set as a whole failed.

    Nothing has been entered by then, so the same readings, with what comes until then, are judged by the next run.

    Raises:
        ValidationError: it failed; says why, and where the report is.
    """
    if verdict.failure:
        raise ValidationError(f"{verdict.failure}. Report: {verdict.report_url}")


def enter(settings: Settings, new: NewReadings, verdict: Verdict) -> ValidateResult:
    """Enter the outcome of every judged device into table `validations`.

    Raises:
        StoreError: another writer was quicker.
    """
    contract = {contract_key(new.profile): new.contract} if new.contract else {}
    Lake(settings).append("validations", outcomes(new, verdict), metadata=contract)
    return result(new, verdict)


def unchanged(new: NewReadings) -> ValidateResult:
    """Return the result of a run that found nothing new: who passed and failed before."""
    return result(new, Verdict((), 0, 0, (), "", new.report_url))


@dataclass(frozen=True)
class _Spooled:
    """Rows on disk, and what was counted of them."""

    files: list[Path]
    counts: pl.DataFrame  # as `frames.merge_counts` returns them
    rows: int
    readings: int


def _spool(
    lake: Lake,
    new: NewReadings,
    parsed: ProfileDocument,
    reference: Sequence[MetricSuite],
    folder: Path,
    most: int,
) -> _Spooled:
    """Write all rows to files, a chunk a file, and count what devices are judged by."""
    profile = compile_profile(parsed)
    files, counts, rows, readings = [], [], 0, 0
    for number, chunk in enumerate(read_chunks(lake, new, most)):
        wide = wide_frame(chunk, profile)
        files.append(folder / f"{number:06}.parquet")
        wide.write_parquet(files[-1], compression="lz4")
        counts.append(device_counts(wide, parsed, reference))
        rows, readings = rows + len(wide), readings + len(chunk)
    return _Spooled(files, merge_counts(counts), rows, readings)


def _record(lake: Lake, new: NewReadings, rows: pl.DataFrame) -> None:
    """Append a run's outcomes to table `checks`, unless they are there from an earlier try of the same run."""
    if lake.scan("checks").filter(pl.col("run_id") == new.run_id).head(1).collect().is_empty():
        lake.append("checks", rows)


def _publish(
    settings: Settings, folder: Path, new: NewReadings, pages: Mapping[str, Path]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Upload the Data Docs, lead to them from the front page; return their folder's address and each suite's page."""
    store = objects.client(settings, "reports")
    prefix = f"validation/{new.run_id}"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content_type = CONTENT_TYPES.get(path.suffix, "application/octet-stream")
            objects.put(store, "reports", f"{prefix}/{path.relative_to(folder)}", path.read_bytes(), content_type)
    base = f"{settings.reports_endpoint}/{prefix}"
    links = tuple((suite, f"{base}/{page}") for suite, page in pages.items())
    front = {
        **{f"suite {suite}": page for suite, page in links},
        "all, by scripts from the internet": f"{base}/index.html",
    }
    objects.put_front(store, f"Validation of {new.profile}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", front)
    return base, links
