"""Great Expectations suites built from a device profile, and the run of them that gives checks and Data Docs.

Two suites: `devices` looks at a row a device (`frames.device_frame`) and so finds the device that is bad; `readings`
looks at all rows of the devices that are left (`frames.wide_frame`) and says whether the data set as a whole is good.
Great Expectations takes seconds to import: nothing here does so before a suite is run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import polars as pl

from expectations.frames import KEYS
from expectations.profiles import ChannelDocument, ProfileDocument

DOCS_SITE: Final = "reports"
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)  # a clock that was never set shows 1970 or 1980

_BETWEEN: Final = "expect_column_values_to_be_between"
_NOT_NULL: Final = "expect_column_values_to_not_be_null"


@dataclass(frozen=True)
class Expected:
    """One expectation as Great Expectations knows it, in plain values.

    Attributes:
        expectation: its name.
        column: the column that it looks at; empty where it looks at whole rows.
        description: the same in a person's words, so that "expected" can stand before it.
        arguments: its further arguments.
    """

    expectation: str
    column: str
    description: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


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
    """

    suite: str
    expectation: str
    column: str
    description: str
    observed: str
    passed: bool
    devices: tuple[tuple[str, str], ...] = ()


class Inspection:
    """One context of Great Expectations in memory, whose Data Docs land in a folder."""

    def __init__(self, folder: Path, run_name: str) -> None:
        """Start a context.

        Args:
            folder: an existing folder for the Data Docs.
            run_name: what the Data Docs call this run.
        """
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        config = DataContextConfig(
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={DOCS_SITE: _site(folder)},
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._source = self._context.data_sources.add_pandas("lake")
        self._folder = folder
        self._run_name = run_name

    def run(
        self, name: str, frame: pl.DataFrame, wanted: Sequence[Expected], index: str | None = None
    ) -> tuple[Check, ...]:
        """Run expectations over a frame, as a suite and checkpoint of that name.

        Args:
            name: the suite's name, once an inspection.
            frame: any columns; converted to pandas, which is what Great Expectations reads.
            wanted: what to expect of it.
            index: a column that names rows; only then are all rows that do not fit listed, so give it for frames with
                few rows only (a complete list of millions takes gigabytes).

        Returns:
            a check an expectation, in the order given.
        """
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        suite = self._context.suites.add(gx.ExpectationSuite(name=name, expectations=_configured(wanted)))
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("new data")
        definition = self._context.validation_definitions.add(
            gx.ValidationDefinition(name=name, data=batch, suite=suite)
        )
        checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition], result_format=_result_format(index))
        result = self._context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame.to_pandas()}, run_id=RunIdentifier(run_name=self._run_name)
        )
        outcomes = {
            out.expectation_config.id: out for one in result.run_results.values() for out in cast("Any", one).results
        }
        return tuple(
            _check(name, one, outcomes[added.id], index) for one, added in zip(wanted, suite.expectations, strict=True)
        )

    def build_docs(self) -> dict[str, Path]:
        """Write the Data Docs of all suites run so far to the folder; return each suite's page of results.

        The index is drawn by scripts from the internet; the pages of results can be read without.
        """
        self._context.build_data_docs(site_names=[DOCS_SITE])
        pages = sorted((self._folder / "validations").rglob("*.html"))
        return {page.relative_to(self._folder).parts[1]: page for page in pages}


def device_expectations(parsed: ProfileDocument, known: Sequence[str]) -> list[Expected]:
    """Return what is asked of each device by itself, on the columns of `frames.device_frame`.

    Args:
        parsed: the profile.
        known: the devices that are enrolled under it.
    """
    quality = parsed.quality
    wanted = [_known_device(parsed, known)]
    for channel in parsed.channels:
        metric = channel.metric
        changes = f"{metric} to change within {quality.dead_after}"
        wanted += [
            Expected(_BETWEEN, f"{metric}_complete", _complete(channel, parsed), {"min_value": quality.completeness}),
            Expected(_BETWEEN, f"{metric}_plausible", _plausible(channel, parsed), {"min_value": quality.plausible}),
            Expected(_BETWEEN, f"{metric}_spread", changes, {"min_value": 0, "strict_min": True}),
        ]
    return wanted


def reading_expectations(parsed: ProfileDocument, known: Sequence[str], latest: datetime) -> list[Expected]:
    """Return what is asked of all rows together, on the columns of `frames.wide_frame`.

    Args:
        parsed: the profile.
        known: the devices that are enrolled under it.
        latest: the last event time that can be, with a time zone.
    """
    time = "event_time"
    earliest_text, latest_text = f"no time before {EARLIEST:%Y}", f"no time after {latest:%Y-%m-%d %H:%M} UTC"
    return [
        Expected("expect_table_row_count_to_be_between", "", "at least one row", {"min_value": 1}),
        Expected("expect_compound_columns_to_be_unique", "", "one row a device and time", {"column_list": list(KEYS)}),
        _known_device(parsed, known),
        Expected(_NOT_NULL, time, "every row to have a time"),
        Expected("expect_column_min_to_be_between", time, earliest_text, {"min_value": EARLIEST}),
        Expected("expect_column_max_to_be_between", time, latest_text, {"max_value": latest}),
        *(expected for channel in parsed.channels for expected in _reading_channel(channel, parsed)),
    ]


def _known_device(parsed: ProfileDocument, known: Sequence[str]) -> Expected:
    """The device is one of those enrolled."""
    description = f"the device to be enrolled under profile {parsed.name}"
    return Expected("expect_column_values_to_be_in_set", "device", description, {"value_set": list(known)})


def _reading_channel(channel: ChannelDocument, parsed: ProfileDocument) -> list[Expected]:
    """All rows of one channel."""
    metric, quality = channel.metric, parsed.quality
    low, high = channel.range
    can_send = f"{metric} within what the device can send, {low:g} to {high:g} {channel.unit}"
    wanted = [
        Expected(_NOT_NULL, metric, _complete(channel, parsed), {"mostly": quality.completeness}),
        Expected(_BETWEEN, metric, can_send, {"min_value": low, "max_value": high}),
    ]
    if channel.plausible:
        low, high = channel.plausible
        arguments = {"min_value": low, "max_value": high, "mostly": quality.plausible}
        wanted.append(Expected(_BETWEEN, metric, _plausible(channel, parsed), arguments))
    return wanted


def _complete(channel: ChannelDocument, parsed: ProfileDocument) -> str:
    """Say the completeness that is asked."""
    return f"{channel.metric} to have a value in at least {parsed.quality.completeness:.4g} of the rows"


def _plausible(channel: ChannelDocument, parsed: ProfileDocument) -> str:
    """Say the plausible share that is asked."""
    low, high = channel.plausible or channel.range
    share = f"at least {parsed.quality.plausible:.4g} of the values"
    return f"{channel.metric} within {low:g} to {high:g} {channel.unit} in {share}"


def _site(folder: Path) -> dict[str, Any]:
    """Return the configuration of Data Docs in a folder."""
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _result_format(index: str | None) -> dict[str, Any]:
    """Return how much Great Expectations tells of rows that do not fit."""
    if index is None:
        return {"result_format": "SUMMARY"}
    return {"result_format": "COMPLETE", "unexpected_index_column_names": [index]}


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


def _check(suite: str, wanted: Expected, outcome: Any, index: str | None) -> Check:
    """Turn Great Expectations' result of one expectation into a check."""
    result: Mapping[str, Any] = outcome.result or {}
    rows = result.get("unexpected_index_list") or [] if index else []
    return Check(
        suite=suite,
        expectation=wanted.expectation,
        column=wanted.column,
        description=wanted.description,
        observed=_observed(result, outcome.exception_info),
        passed=bool(outcome.success),
        devices=tuple((str(row[index]), _shown(row[wanted.column])) for row in rows),
    )


def _observed(result: Mapping[str, Any], exception: Any) -> str:
    """Say what was found."""
    if "observed_value" in result:
        return _shown(result["observed_value"])
    if "unexpected_count" in result:
        count, of = result["unexpected_count"], result["element_count"]
        return f"{count:,} of {of:,} do not fit ({100 * count / of:.3g} %)" if count else f"all of {of:,} fit"
    return f"could not be evaluated: {exception}"


def _shown(value: Any) -> str:
    """Write one value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
