"""Suites run by Great Expectations on Polars: checks for the lake and for people, and Data Docs.

Great Expectations takes seconds to import: nothing here does so before an inspection begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from expectations.suites import Expected


@dataclass(frozen=True)
class Check:
    """One expectation and how it ended.

    Attributes:
        suite: `devices` or `readings`.
        expectation: Great Expectations' name of it.
        column: the metric or key that it looks at; empty where it looks at whole rows.
        description: what was expected, in a person's words.
        observed: what was found instead, or the share that does not fit.
        passed: whether the data met it.
        devices: in suite `devices`, those that did not, each with the share or value that it showed.
        elements: how many rows were looked at; None where the expectation is about the whole.
        unexpected: how many of them do not fit; None likewise.
        rows_of: in suites over rows, the devices that rows which do not fit come from, each with how many.
    """

    suite: str
    expectation: str
    column: str
    description: str
    observed: str
    passed: bool
    devices: tuple[tuple[str, str], ...] = ()
    elements: int | None = None
    unexpected: int | None = None
    rows_of: tuple[tuple[str, int], ...] = ()


class Inspection:
    """One context of Great Expectations in memory, whose Data Docs land in a folder."""

    def __init__(self, folder: Path, run_name: str, most_devices: int = 10_000) -> None:
        """Start a context.

        Args:
            folder: an existing folder for the Data Docs.
            run_name: what the Data Docs call this run.
            most_devices: how many devices a suite that names them can have.
        """
        from expectations.polars_engine.workbench import Workbench

        self._workbench = Workbench(folder, max_unexpected_rows=most_devices)
        self._folder = folder
        self._run_name = run_name

    def run_devices(self, name: str, frame: pl.DataFrame, wanted: Sequence[Expected]) -> tuple[Check, ...]:
        """Run expectations over a row a device, and name the devices that do not meet them.

        Args:
            name: the suite's name, once an inspection.
            frame: column `device` and those that are expected of.
            wanted: what to expect of it.

        Returns:
            a check an expectation, in the order given.
        """
        listed = {"result_format": "COMPLETE", "unexpected_index_column_names": ["device"]}
        prepared = self._workbench.prepare(name, _configured(wanted), listed)
        outcomes = prepared.in_order(prepared.run(frame, self._run_name))
        return tuple(_check(name, one, out, _devices(one, out)) for one, out in zip(wanted, outcomes, strict=True))

    def run_rows(self, name: str, frame: pl.DataFrame | pl.LazyFrame, wanted: Sequence[Expected]) -> tuple[Check, ...]:
        """Run expectations over rows of any number, and count of which devices those are that do not fit.

        Args:
            name: the suite's name, once an inspection.
            frame: column `device` and those that are expected of; a lazy one is read anew by each of a few passes, in
                bounded memory.
            wanted: what to expect of it.

        Returns:
            a check an expectation, in the order given.
        """
        from expectations.polars_engine.groups import unexpected_by

        prepared = self._workbench.prepare(name, _configured(wanted), {"result_format": "SUMMARY"})
        outcomes = prepared.in_order(prepared.run(frame, self._run_name))
        misfits = [number for number, out in enumerate(outcomes) if (out.result or {}).get("unexpected_count")]
        counts = unexpected_by(frame, "device", [prepared.suite.expectations[number] for number in misfits])
        rows_of = {number: tuple(count.items()) for number, count in zip(misfits, counts, strict=True)}
        return tuple(
            _check(name, one, out, rows_of=rows_of.get(number, ()))
            for number, (one, out) in enumerate(zip(wanted, outcomes, strict=True))
        )

    def build_docs(self) -> dict[str, Path]:
        """Write the Data Docs of all suites run so far to the folder; return each suite's page of results.

        The index is drawn by scripts from the internet; the pages of results can be read without.
        """
        self._workbench.build_docs()
        pages = sorted((self._folder / "validations").rglob("*.html"))
        return {page.relative_to(self._folder).parts[1]: page for page in pages}


def shown(value: Any) -> str:
    """Write one value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _configured(wanted: Sequence[Expected]) -> list[Any]:
    """Turn expectations into Great Expectations' own."""
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    return [
        ExpectationConfiguration(
            type=one.expectation,
            kwargs={**({"column": one.column} if one.column else {}), **one.arguments},
            description=one.description,
        )
        for one in wanted
    ]


def _devices(wanted: Expected, outcome: Any) -> tuple[tuple[str, str], ...]:
    """Return the devices that do not meet an expectation, each with what it showed."""
    rows = (outcome.result or {}).get("unexpected_index_list") or []
    return tuple((str(row["device"]), shown(row[wanted.column])) for row in rows)


def _check(
    suite: str,
    wanted: Expected,
    outcome: Any,
    devices: tuple[tuple[str, str], ...] = (),
    rows_of: tuple[tuple[str, int], ...] = (),
) -> Check:
    """Turn Great Expectations' result of one expectation into a check."""
    result: Mapping[str, Any] = outcome.result or {}
    return Check(
        suite=suite,
        expectation=wanted.expectation,
        column=wanted.column,
        description=wanted.description,
        observed=_observed(result, outcome.exception_info),
        passed=bool(outcome.success),
        devices=devices,
        elements=result.get("element_count"),
        unexpected=result.get("unexpected_count"),
        rows_of=rows_of,
    )


def _observed(result: Mapping[str, Any], exception: Any) -> str:
    """Say what was found."""
    if "observed_value" in result:
        return shown(result["observed_value"])
    if "unexpected_count" in result:
        count, of = result["unexpected_count"], result["element_count"]
        return f"{count:,} of {of:,} do not fit ({100 * count / of:.3g} %)" if count else f"all of {of:,} fit"
    return f"could not be evaluated: {exception}"
