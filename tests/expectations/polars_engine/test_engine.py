"""The engine under Great Expectations: errors, passes over the data, limits, and what is kept between runs."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from great_expectations.expectations.expectation import Expectation
from great_expectations.validator.validator import Validator
from polars.io.plugins import register_io_source

from expectations.polars_engine.errors import UnsupportedError
from expectations.polars_engine.groups import unexpected_by
from expectations.polars_engine.workbench import Kind, Workbench
from tests.expectations.polars_engine.twins import Contexts

FRAME = pl.DataFrame({"device": ["a", "b", "b"], "value": [1.0, 2.0, 30.0]})
FOR_PANDAS = {"type": "pass_through", "pass_through_filter": "device == 'a'"}
NOT_NULL = ("expect_column_values_to_not_be_null", {"column": "value"})
BETWEEN = ("expect_column_values_to_be_between", {"column": "value", "max_value": 10})


def test_an_unsupported_expectation_is_named_and_costs_no_other(contexts: Contexts) -> None:
    """The error says which expectation it is and what to do; the next one is evaluated."""
    strange = ("expect_column_values_to_be_dateutil_parseable", {"column": "device"})
    refused, passed = contexts.run("polars", FRAME, [strange, NOT_NULL], "SUMMARY")
    assert "expect_column_values_to_be_dateutil_parseable is not supported on Polars" in refused["error"]
    assert passed["success"]


def test_a_column_that_is_not_there_fails_its_expectation_alone(contexts: Contexts) -> None:
    """The error names it and those that there are."""
    absent = ("expect_column_max_to_be_between", {"column": "nowhere", "max_value": 1})
    refused, passed = contexts.run("polars", FRAME, [absent, NOT_NULL], "SUMMARY")
    assert '"nowhere" does not exist in the data; there are: device, value' in refused["error"]
    assert passed["success"]


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"column": "device", "max_value": 3}, "cannot be compared with 3"),
        ({"column": "value", "max_value": datetime(2024, 1, 1, tzinfo=UTC)}, "cannot be compared with datetime"),
        ({"column": "value", "max_value": 1, "row_condition": FOR_PANDAS}, "is text for another engine"),
    ],
    ids=["number for text", "time for a number", "condition in pandas' language"],
)
def test_what_cannot_be_compared_is_an_error_and_no_verdict(contexts: Contexts, kwargs: Any, reason: str) -> None:
    """Of the wrong type, or in the language of another engine."""
    refused, passed = contexts.run("polars", FRAME, [(BETWEEN[0], kwargs), NOT_NULL], "SUMMARY")
    assert reason in refused["error"]
    assert not refused["success"]
    assert passed["success"]


@pytest.mark.parametrize(
    "wanted", [[NOT_NULL, NOT_NULL], [NOT_NULL, BETWEEN, (BETWEEN[0], {"column": "value", "max_value": 20})]]
)
def test_a_suite_takes_one_pass_and_a_second_for_samples(contexts: Contexts, wanted: Any) -> None:
    """However many expectations; reading the sampled rows of a lazy frame is one more for each set of rows."""
    passes = 0

    def read(columns: Any, predicate: Any, rows: Any, size: Any) -> Iterator[pl.DataFrame]:
        nonlocal passes
        passes += 1
        yield FRAME.select(columns or FRAME.columns)

    outcomes = contexts.run("polars", register_io_source(read, schema=FRAME.schema), wanted, "SUMMARY")
    assert passes == (1 if all(outcome["success"] for outcome in outcomes) else 3)


def test_another_frame_under_the_same_name_is_computed_anew(contexts: Contexts) -> None:
    """A batch's name says nothing of its data."""
    prepared = contexts.prepare("polars", [("expect_table_row_count_to_equal", {"value": 3})], "SUMMARY")
    assert [prepared.run(frame).success for frame in (FRAME, FRAME.head(1), FRAME)] == [True, False, True]


def test_a_complete_result_lists_no_more_rows_than_the_source_says() -> None:
    """All are counted; a list of millions would take gigabytes."""
    capped = Contexts(Workbench(max_unexpected_rows=5))
    unmet = ("expect_column_values_to_be_null", {"column": "value"})
    (found,) = capped.run("polars", pl.DataFrame({"value": range(100)}), [unmet], "COMPLETE")
    assert found["result"]["unexpected_count"] == 100
    assert found["result"]["unexpected_index_list"] == [0, 1, 2, 3, 4]


def test_a_complete_result_lists_more_rows_than_were_noted_with_their_count(contexts: Contexts) -> None:
    """Beyond the first few the data is looked at again."""
    unmet = ("expect_column_values_to_be_between", {"column": "value", "min_value": 100})
    (found,) = contexts.run("polars", pl.DataFrame({"value": range(700)}).reverse(), [unmet], "COMPLETE")
    assert found["result"]["unexpected_index_list"] == list(range(600, 700))
    (found,) = contexts.run(
        "polars", pl.DataFrame({"value": range(700)}), [(unmet[0], {**unmet[1], "min_value": 500})], "COMPLETE"
    )
    assert found["result"]["unexpected_index_list"] == list(range(500))


def test_a_project_in_files_keeps_source_suite_and_checkpoint_and_writes_data_docs(tmp_path: Path) -> None:
    """What one program configures another runs, with times kept as text; the page shows the outcome."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    latest = datetime(2024, 1, 2, tzinfo=UTC)
    context = gx.get_context(mode="file", project_root_dir=tmp_path)
    asset = context.data_sources.add_polars("lake").add_dataframe_asset("readings")
    data = asset.add_batch_definition_whole_dataframe("new")
    wanted = [
        gxe.ExpectColumnValuesToBeBetween(column="time", max_value=latest),
        gxe.ExpectColumnValuesToBeBetween(column="value", max_value=5, row_condition=Column("device") == "a"),
    ]
    suite = context.suites.add(gx.ExpectationSuite("readings", expectations=wanted))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="readings", data=data, suite=suite))
    actions = [gx.checkpoint.UpdateDataDocsAction(name="docs")]
    context.checkpoints.add(gx.Checkpoint(name="readings", validation_definitions=[definition], actions=actions))

    frame = FRAME.with_columns(time=pl.lit(latest).dt.cast_time_unit("ms"))
    again = gx.get_context(mode="file", project_root_dir=tmp_path)
    result = again.checkpoints.get("readings").run(batch_parameters={"dataframe": frame})
    assert result.success
    pages = list(tmp_path.rglob("validations/**/*.html"))
    assert len(pages) == 1
    assert "Succeeded" in pages[0].read_text()


@pytest.mark.parametrize("lazy", [False, True], ids=["frame", "lazy"])
def test_unexpected_rows_are_counted_by_device(contexts: Contexts, lazy: bool) -> None:
    """Judged one by one, by the row before and by all others: the groups' counts add up to the expectation's."""
    frame = pl.DataFrame({"device": ["a", "b", "b", "c", "a"], "value": [1.0, 2.0, 30.0, None, 1.0]})
    wanted = [
        BETWEEN,
        NOT_NULL,
        (BETWEEN[0], {"column": "value", "min_value": 2, "row_condition": _only("a")}),
        ("expect_column_values_to_be_increasing", {"column": "value", "strictly": True}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["device", "value"]}),
        ("expect_column_values_to_be_unique", {"column": "value"}),
        ("expect_column_values_to_be_in_set", {"column": "device", "value_set": ["a", "b", "c"]}),
    ]
    given = frame.lazy() if lazy else frame
    prepared = contexts.prepare("polars", wanted, "SUMMARY")
    found = unexpected_by(given, "device", prepared.suite.expectations)
    assert found == [{"b": 1}, {"c": 1}, {"a": 2}, {"a": 1}, {"a": 2}, {"a": 2}, {}]
    outcomes = prepared.in_order(prepared.run(given))
    assert [sum(groups.values()) for groups in found] == [one.result["unexpected_count"] for one in outcomes]


def test_an_expectation_on_a_column_has_no_rows_to_count(contexts: Contexts) -> None:
    """A mean belongs to no row; the error names the expectation."""
    prepared = contexts.prepare("polars", [("expect_column_mean_to_be_between", {"column": "value"})], "SUMMARY")
    with pytest.raises(UnsupportedError, match="expect_column_mean_to_be_between is none on rows"):
        unexpected_by(FRAME, "device", prepared.suite.expectations)


def _only(device: str) -> dict[str, Any]:
    return {"type": "comparison", "column": {"name": "device"}, "operator": "==", "parameter": device}


WHOLE_SUITE = [
    BETWEEN,
    NOT_NULL,
    (BETWEEN[0], {"column": "value", "min_value": 2, "row_condition": _only("a"), "mostly": 0.5}),
    ("expect_column_values_to_be_in_set", {"column": "device", "value_set": ["a", "c"]}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["device", "value"]}),
    ("expect_column_mean_to_be_between", {"column": "value", "max_value": 3}),
    ("expect_column_distinct_values_to_equal_set", {"column": "device", "value_set": ["a"]}),
]


def test_a_report_is_the_same_to_the_last_field_without_memory(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Great Expectations remembers while it validates spares work and changes nothing, run after run."""
    prepared = contexts.prepare("polars", WHOLE_SUITE, "COMPLETE")
    found = [prepared.run(FRAME).to_json_dict() for _ in range(2)]
    monkeypatch.setattr(Validator, "graph_validate", Validator.graph_validate.__wrapped__)  # type: ignore[attr-defined]
    without = prepared.run(FRAME).to_json_dict()
    assert [one["results"] for one in found] == [without["results"]] * 2
    assert found[0]["statistics"] == without["statistics"]


def test_expectations_are_remembered_on_polars_and_on_no_other_engine(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory Great Expectations reads each of them about a hundred times."""
    read: list[str] = []
    suites = {kind: contexts.prepare(kind, [BETWEEN] * 3, "SUMMARY") for kind in _KINDS}
    to_dict = Expectation.dict
    for kind, prepared in suites.items():

        def counted(expectation: Expectation, kind: str = kind, **how: Any) -> dict[str, Any]:
            read.append(kind)
            return to_dict(expectation, **how)

        monkeypatch.setattr(Expectation, "dict", counted)
        prepared.run(FRAME)
    assert read.count("polars") * 3 < read.count("pandas")


_KINDS: tuple[Kind, ...] = ("polars", "pandas")
