"""Validation: new readings against the suites of their device profile.

Order of steps: find what is new since each device last passed (`find_new`), judge the devices and then the rest as a
whole and publish the report (`judge`), stop the line where the whole fails (`require_passed`), else enter the outcome
of each device into table `validations` (`enter`). A device that fails is set aside: its readings stay in the lake, and
are judged again with all that came since as soon as there is more of them or the profile has changed.
"""

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Final

import polars as pl
from prefect import task
from prefect.runtime import flow_run

from expectations.frames import device_frame, wide_frame
from expectations.profiles import ProfileDocument, compile_profile, read_profile
from expectations.suites import Check, Inspection, device_expectations, reading_expectations
from fieldloop.domain.errors import ValidationError
from fieldloop.stores import fleet, objects
from fieldloop.stores.lake import SCHEMAS, Lake
from fieldloop.stores.settings import Settings

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
SHOWN_DEVICES: Final = 100  # devices that an artifact or a reason lists by name
SHOWN_REASONS: Final = 5  # failed expectations that one reason spells out
TIMEOUT_S: Final = 1800


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


@dataclass(frozen=True)
class Verdict:
    """What the suites said.

    Attributes:
        checks: every expectation of both suites.
        rows: (device, time) rows judged.
        readings: readings judged.
        set_aside: the devices that failed by themselves.
        failure: why the data set as a whole failed; empty where it passed.
        report_url: the Data Docs.
        pages: name and address of each suite's page in them.
    """

    checks: tuple[Check, ...]
    rows: int
    readings: int
    set_aside: tuple[SetAside, ...]
    failure: str
    report_url: str
    pages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ValidateResult:
    """What a run of validation came to.

    Attributes:
        passed: expectations met.
        of: expectations evaluated; 0 where there was nothing new.
        rows: (device, time) rows judged.
        readings: readings judged.
        devices: the devices that may be trained on.
        set_aside: those that may not, with reasons.
        report_url: the newest Data Docs; empty where there are none yet.
    """

    passed: int
    of: int
    rows: int
    readings: int
    devices: tuple[str, ...]
    set_aside: tuple[SetAside, ...]
    report_url: str


@task(name="find new readings", retries=2, retry_delay_seconds=5, timeout_seconds=TIMEOUT_S, tags=["lake"])
def find_new_readings(profile: str, devices: Sequence[str] | None) -> NewReadings:
    """Find what is new since each device last passed."""
    return find_new(Settings(), profile, devices, run_id=str(flow_run.id or uuid.uuid4()))


@task(name="judge readings", retries=1, retry_delay_seconds=10, timeout_seconds=TIMEOUT_S, tags=["great-expectations"])
def judge_readings(new: NewReadings) -> Verdict:
    """Run the suites and publish their report."""
    return judge(Settings(), new)


@task(name="enter outcomes", retries=2, retry_delay_seconds=5, timeout_seconds=TIMEOUT_S, tags=["lake"])
def enter_outcomes(new: NewReadings, verdict: Verdict) -> ValidateResult:
    """Enter each device's outcome into the lake."""
    return enter(Settings(), new, verdict)


def find_new(settings: Settings, profile: str, devices: Sequence[str] | None, run_id: str) -> NewReadings:
    """Find the readings that came since each device last passed.

    Args:
        settings: where the lake is.
        profile: the profile's name.
        devices: only these; None or none means all that are enrolled under the profile.
        run_id: names the report.

    Raises:
        DocumentError: there is no usable profile of that name.
        ValidationError: a device is asked for that is enrolled under another profile, or not at all.
    """
    lake = Lake(settings)
    contract = _digest(read_profile(settings.root, profile))
    known = [device for device, name in fleet.devices(lake).items() if name == profile]
    if strangers := sorted(set(devices or ()) - set(known)):
        raise ValidationError(
            f"not enrolled under profile {profile}: {', '.join(strangers)}; there are {_named(known)}"
        )
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
    )


def judge(settings: Settings, new: NewReadings) -> Verdict:
    """Run both suites over the new readings and publish their Data Docs.

    Args:
        settings: where lake and reports are.
        new: what `find_new` found; not empty.

    Raises:
        StoreError: the lake cannot be read or the report not be written.
    """
    parsed = read_profile(settings.root, new.profile)
    profile = compile_profile(parsed)
    readings = _read(Lake(settings), new)
    wide = wide_frame(readings, profile)
    latest = datetime.now(UTC) + timedelta(microseconds=profile.future_tolerance_us)
    with TemporaryDirectory(prefix="fieldloop-validate-") as folder:
        inspection = Inspection(Path(folder), new.run_id)
        checks = inspection.run(
            "devices", device_frame(wide, parsed), device_expectations(parsed, new.known), index="device"
        )
        set_aside = _set_aside(checks)
        rest = wide.filter(~pl.col("device").is_in([bad.device for bad in set_aside]))
        if rest.height:
            checks += inspection.run("readings", rest, reading_expectations(parsed, new.known, latest))
        pages = inspection.build_docs()
        base = _publish(settings, Path(folder), new.run_id)
        links = tuple((suite, f"{base}/{page.relative_to(folder)}") for suite, page in pages.items())
    failure = _failure(parsed, new, set_aside, checks)
    return Verdict(checks, wide.height, readings.height, set_aside, failure, f"{base}/index.html", links)


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
    contract = {_contract_key(new.profile): new.contract} if new.contract else {}
    Lake(settings).append("validations", _outcomes(new, verdict), metadata=contract)
    return _result(new, verdict)


def unchanged(new: NewReadings) -> ValidateResult:
    """Return the result of a run that found nothing new: who passed and failed before."""
    return _result(new, Verdict((), 0, 0, (), "", new.report_url))


def describe(new: NewReadings, verdict: Verdict) -> str:
    """Return the verdict for people, complete without the report."""
    links = [f"[Data Docs]({verdict.report_url})", *(f"[{suite}]({url})" for suite, url in verdict.pages)]
    figures = f"{verdict.rows:,} rows with {verdict.readings:,} readings of {len(new.spans)} devices"
    lines = [
        f"## Validation of {new.profile}: {_headline(verdict)}",
        f"**The line stops:** {verdict.failure}." if verdict.failure else "",
        f"{figures}, version {new.table_version} of table `readings`. {', '.join(links)}",
        _device_table(new, verdict),
        _check_table(verdict),
    ]
    return "\n\n".join(line for line in lines if line)


def describe_unchanged(new: NewReadings) -> str:
    """Return for people that there was nothing to judge, and how things stand."""
    refused = [f"- {entry.device} is set aside: {entry.reason}" for entry in new.set_aside[:SHOWN_DEVICES]]
    report = [f"[Data Docs of the last run]({new.report_url})"] if new.report_url else []
    lines = [f"## Validation of {new.profile}: nothing new since the last run", "\n".join(refused), *report]
    return "\n\n".join(line for line in lines if line)


def _digest(parsed: ProfileDocument) -> str:
    """Return what changes when the profile does."""
    return hashlib.sha256(parsed.model_dump_json().encode()).hexdigest()


def _contract_key(profile: str) -> str:
    """Return the commit metadata's key under which a profile's digest is kept."""
    return f"contract.{profile}"


def _contract_of_last_run(lake: Lake, profile: str) -> str | None:
    """Return the digest of the profile by which devices were last judged."""
    key = _contract_key(profile)
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


def _read(lake: Lake, new: NewReadings) -> pl.DataFrame:
    """Return the readings of all spans: device, metric, event_time, value."""
    spans = pl.LazyFrame([asdict(span) for span in new.spans])
    came = (pl.col("sequence") > min(span.after for span in new.spans)) | (pl.col("replay") > 0)
    unjudged = (pl.col("sequence") > pl.col("after")) | (pl.col("replay") > pl.col("replayed_after"))
    return (
        lake.scan("readings", new.table_version)
        .filter(came)
        .join(spans, on="device")
        .filter(unjudged, pl.col("sequence") <= pl.col("until"), pl.col("replay") <= pl.col("replayed_until"))
        .select("device", "metric", "event_time", "value")
        .collect()
    )


def _set_aside(checks: Sequence[Check]) -> tuple[SetAside, ...]:
    """Return the devices that did not meet some expectation by themselves, with all their reasons."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        for device, value in check.devices:
            reasons.setdefault(device, []).append(f"expected {check.description}, got {value}")
    return tuple(SetAside(device, _joined(texts)) for device, texts in sorted(reasons.items()))


def _failure(parsed: ProfileDocument, new: NewReadings, set_aside: Sequence[SetAside], checks: Sequence[Check]) -> str:
    """Say why the data set as a whole fails; empty where it does not."""
    judged = len(new.spans)
    if judged - len(set_aside) < parsed.quality.devices * judged:
        reasons = _joined([f"{bad.device}: {bad.reason}" for bad in set_aside])
        least = f"at least {parsed.quality.devices:.4g} of them must pass"
        return f"{len(set_aside)} of {judged} devices of profile {new.profile} fail, {least} ({reasons})"
    broken = [check for check in checks if not check.passed and not check.devices]
    texts = [f"expected {check.description}, got {check.observed}" for check in broken]
    return f"new readings of profile {new.profile} fail as a whole ({_joined(texts)})" if texts else ""


def _publish(settings: Settings, folder: Path, run_id: str) -> str:
    """Upload the Data Docs and return the address of their folder."""
    store = objects.client(settings, "reports")
    prefix = f"validation/{run_id}"
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content_type = CONTENT_TYPES.get(path.suffix, "application/octet-stream")
            objects.put(store, "reports", f"{prefix}/{path.relative_to(folder)}", path.read_bytes(), content_type)
    return f"{settings.reports_endpoint}/{prefix}"


def _outcomes(new: NewReadings, verdict: Verdict) -> pl.DataFrame:
    """Return the rows that `validations` gets."""
    reasons = {bad.device: bad.reason for bad in verdict.set_aside}
    now = datetime.now(UTC)
    rows = [
        {
            "run_id": new.run_id,
            "device": span.device,
            "passed": span.device not in reasons,
            "last_sequence": span.until,
            "last_replay": span.replayed_until,
            "reason": reasons.get(span.device, ""),
            "report_url": verdict.report_url,
            "validated_at": now,
        }
        for span in new.spans
    ]
    return pl.DataFrame(rows, schema=SCHEMAS["validations"])


def _result(new: NewReadings, verdict: Verdict) -> ValidateResult:
    """Return the figures, with the devices that were not judged as they stood."""
    judged = {span.device for span in new.spans}
    before = tuple(bad for bad in new.set_aside if bad.device not in judged)
    set_aside = tuple(sorted((*before, *verdict.set_aside), key=lambda bad: bad.device))
    passed = (judged | set(new.passed)) - {bad.device for bad in set_aside}
    return ValidateResult(
        passed=sum(check.passed for check in verdict.checks),
        of=len(verdict.checks),
        rows=verdict.rows,
        readings=verdict.readings,
        devices=tuple(sorted(passed)),
        set_aside=set_aside,
        report_url=verdict.report_url,
    )


def _headline(verdict: Verdict) -> str:
    """Say the outcome in a few words."""
    passed = f"{sum(check.passed for check in verdict.checks)} of {len(verdict.checks)} expectations met"
    if verdict.failure:
        return f"failed, {passed}"
    return f"passed, {passed}" + (f", {len(verdict.set_aside)} devices set aside" if verdict.set_aside else "")


def _device_table(new: NewReadings, verdict: Verdict) -> str:
    """Return the devices as a table, those set aside first."""
    bad = {refused.device for refused in verdict.set_aside}
    good = [span.device for span in new.spans if span.device not in bad]
    rows = [f"| {entry.device} | set aside | {_cell(entry.reason)} |" for entry in verdict.set_aside[:SHOWN_DEVICES]]
    if good:
        rows.append(f"| {_named(good)} | {'not entered' if verdict.failure else 'passed'} | |")
    return "\n".join(["| devices | verdict | reason |", "|---|---|---|", *rows])


def _check_table(verdict: Verdict) -> str:
    """Return the expectations as a table, those not met first."""
    rows = ["| | suite | column | expected | observed | expectation |", "|---|---|---|---|---|---|"]
    for check in sorted(verdict.checks, key=lambda check: check.passed):
        cells = (check.suite, check.column, check.description, check.observed, check.expectation)
        rows.append(f"| {'✅' if check.passed else '❌'} | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Keep a text within its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _joined(texts: Sequence[str]) -> str:
    """Join reasons, the first few in words."""
    more = len(texts) - SHOWN_REASONS
    return "; ".join(texts[:SHOWN_REASONS]) + (f"; and {more} more" if more > 0 else "")


def _named(devices: Sequence[str]) -> str:
    """Name devices, the first hundred."""
    more = len(devices) - SHOWN_DEVICES
    return ", ".join(devices[:SHOWN_DEVICES]) + (f" and {more:,} more" if more > 0 else "")
