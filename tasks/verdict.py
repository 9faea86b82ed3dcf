"""What validation comes to: the verdict on what was new, its rows for the lake, and its text for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from expectations.inspection import Check
from expectations.profiles import ProfileDocument
from fieldloop.stores.tables import SCHEMAS
from tasks.unjudged import NAMED_DEVICES, NewReadings, SetAside, named

SHOWN_DIGITS: Final = 4  # of a device's share or value
SHOWN_REASONS: Final = 5  # failed expectations or devices that one reason spells out


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


def set_aside(checks: Sequence[Check]) -> tuple[SetAside, ...]:
    """Return the devices that did not meet some expectation by themselves, with all their reasons."""
    reasons: dict[str, list[str]] = {}
    for check in checks:
        for device, value in check.devices:
            reasons.setdefault(device, []).append(f"expected {check.description}, got {value}")
    return tuple(SetAside(device, _joined(texts)) for device, texts in sorted(reasons.items()))


def failure(parsed: ProfileDocument, new: NewReadings, refused: Sequence[SetAside], checks: Sequence[Check]) -> str:
    """Say why the data set as a whole fails; empty where it does not.

    Args:
        parsed: says how many devices must pass.
        new: what was judged.
        refused: the devices that failed.
        checks: of both suites.
    """
    judged = len(new.spans)
    if judged - len(refused) < parsed.quality.devices * judged:
        reasons = _joined([f"{bad.device}: {bad.reason}" for bad in refused])
        least = f"at least {parsed.quality.devices:.4g} of them must pass"
        return f"{len(refused)} of {judged} devices of profile {new.profile} fail, {least} ({reasons})"
    broken = [check for check in checks if not check.passed and not check.devices]
    texts = [f"expected {check.description}, got {_found(check)}" for check in broken]
    return f"new readings of profile {new.profile} fail as a whole ({_joined(texts)})" if texts else ""


def outcomes(new: NewReadings, verdict: Verdict) -> pl.DataFrame:
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


def result(new: NewReadings, verdict: Verdict) -> ValidateResult:
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


def check_rows(new: NewReadings, checks: Sequence[Check], devices: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that table `checks` gets.

    Args:
        new: what was judged.
        checks: of both suites.
        devices: as `frames.device_frame` returns it.

    Returns:
        for an expectation on devices a row a device, with what that device showed; for one on all rows a row with an
        empty device, and one for each device that has rows which do not fit.
    """
    now = datetime.now(UTC)
    parts = [
        _rows_of_devices(check, devices) if check.suite == "devices" else _rows_of_whole(check) for check in checks
    ]
    run = {"run_id": new.run_id, "profile": new.profile, "table_version": new.table_version, "judged_at": now}
    wanted = SCHEMAS["checks"]
    columns = [
        pl.lit(run[name]).cast(kind).alias(name) if name in run else pl.col(name) for name, kind in wanted.items()
    ]
    return pl.concat(parts).select(columns)


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
    refused = [f"- {entry.device} is set aside: {entry.reason}" for entry in new.set_aside[:NAMED_DEVICES]]
    report = [f"[Data Docs of the last run]({new.report_url})"] if new.report_url else []
    lines = [f"## Validation of {new.profile}: nothing new since the last run", "\n".join(refused), *report]
    return "\n\n".join(line for line in lines if line)


def _rows_of_devices(check: Check, devices: pl.DataFrame) -> pl.DataFrame:
    """Return a row a device."""
    bad = [device for device, _ in check.devices]
    showed = devices[check.column]
    observed = (showed.round_sig_figs(SHOWN_DIGITS) if showed.dtype.is_float() else showed).cast(pl.String)
    return _plain(check, devices["device"].to_list()).with_columns(
        observed=observed, elements=devices["rows"].cast(pl.Int64), passed=~pl.col("device").is_in(bad)
    )


def _rows_of_whole(check: Check) -> pl.DataFrame:
    """Return a row for all, and one a device with rows that do not fit."""
    counts = pl.Series([check.unexpected, *(count for _, count in check.rows_of)], dtype=pl.Int64)
    elements = pl.Series([check.elements, *[None] * len(check.rows_of)], dtype=pl.Int64)
    rows = _plain(check, ["", *(device for device, _ in check.rows_of)])
    return rows.with_columns(
        observed=pl.lit(check.observed), elements=elements, unexpected=counts, passed=pl.lit(check.passed)
    )


def _plain(check: Check, devices: Sequence[str]) -> pl.DataFrame:
    """Return a row a device with what an expectation says of itself."""
    same = {name: getattr(check, name) for name in ("suite", "expectation", "column", "description")}
    columns = {"observed": pl.String, "elements": pl.Int64, "unexpected": pl.Int64, "passed": pl.Boolean}
    return pl.DataFrame({"device": devices}, schema={"device": pl.String}).with_columns(
        **{name: pl.lit(text) for name, text in same.items()},
        **{name: pl.lit(None, dtype=kind) for name, kind in columns.items()},
    )


def _found(check: Check) -> str:
    """Say what was found, and in rows of which devices."""
    rows = [f"{count:,} of {device}" for device, count in sorted(check.rows_of, key=lambda one: -one[1])]
    return check.observed + (f", {_joined(rows, ', ')}" if rows else "")


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
    rows = [f"| {entry.device} | set aside | {_cell(entry.reason)} |" for entry in verdict.set_aside[:NAMED_DEVICES]]
    if good:
        rows.append(f"| {named(good)} | {'not entered' if verdict.failure else 'passed'} | |")
    return "\n".join(["| devices | verdict | reason |", "|---|---|---|", *rows])


def _check_table(verdict: Verdict) -> str:
    """Return the expectations as a table, those not met first."""
    rows = ["| | suite | column | expected | observed | expectation |", "|---|---|---|---|---|---|"]
    for check in sorted(verdict.checks, key=lambda check: check.passed):
        cells = (check.suite, check.column, check.description, _found(check), check.expectation)
        rows.append(f"| {'✅' if check.passed else '❌'} | {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Keep a text within its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _joined(texts: Sequence[str], between: str = "; ") -> str:
    """Join reasons, the first few in words."""
    more = len(texts) - SHOWN_REASONS
    return between.join(texts[:SHOWN_REASONS]) + (f"{between}and {more:,} more" if more > 0 else "")
