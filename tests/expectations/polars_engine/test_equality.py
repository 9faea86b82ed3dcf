"""Verdicts, counts, values and rows are those of Great Expectations on pandas."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from great_expectations.expectations import registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expectations.polars_engine import supported_expectations
from tests.expectations.polars_engine.twins import Both, Contexts, Expectations, Outcome

NAN, INF = float("nan"), float("inf")
START = datetime(2024, 3, 31, tzinfo=UTC)

FULL = pl.DataFrame(
    {
        "device": ["a", "b", "a", "c", "b", "a", "d", "c"],
        "number": [1.0, None, 3.5, NAN, 2.0, 2.0, -1.0, 100.0],
        "whole": [3, 1, 2, 2, 5, None, 7, 8],
        "rank": [1, 2, 3, 4, 4, 6, 7, 8],
        "other": [1.0, 2.0, None, NAN, 2.0, 3.0, -1.0, 99.0],
        "text": ["alpha", "Beta", None, "γάμμα", "", "alpha", "x" * 12, "beta\nline"],
        "flag": [True, False, True, None, True, False, True, True],
        "time": [START + timedelta(hours=step) for step in (0, 1, 2, 3, 3, 5, 6, 1)],
    },
    schema_overrides={"time": pl.Datetime("us", "Europe/Paris")},
)
WITHOUT = [name for name in FULL.columns if name != "device"]
EMPTY = FULL.clear()
NULLS = FULL.with_columns(
    pl.lit(None, dtype=FULL.schema[name]).alias(name) for name in FULL.columns if name != "device"
)
FRAMES = {"full": FULL, "empty": EMPTY, "nulls": NULLS, "one": FULL.head(1)}


def _compare(column: str, how: str, value: Any) -> dict[str, Any]:
    """Return a row condition as it stands in a suite's JSON."""
    return {"type": "comparison", "column": {"name": column}, "operator": how, "parameter": value}


CONDITION = _compare("device", "==", "a")

MAPS: list[tuple[str, dict[str, Any]]] = [
    ("expect_column_values_to_not_be_null", {"column": "number"}),
    ("expect_column_values_to_not_be_null", {"column": "text"}),
    ("expect_column_values_to_be_null", {"column": "number"}),
    ("expect_column_values_to_be_between", {"column": "number", "min_value": 0, "max_value": 3}),
    ("expect_column_values_to_be_between", {"column": "number", "min_value": 2, "strict_min": True}),
    ("expect_column_values_to_be_between", {"column": "number", "max_value": 2, "strict_max": True}),
    ("expect_column_values_to_be_between", {"column": "whole", "min_value": 2, "max_value": 5.5}),
    ("expect_column_values_to_be_between", {"column": "rank", "min_value": 2, "max_value": 5, "strict_max": True}),
    (
        "expect_column_values_to_be_between",
        {"column": "time", "min_value": START + timedelta(hours=1), "max_value": START + timedelta(hours=5)},
    ),
    ("expect_column_values_to_be_between", {"column": "time", "max_value": "2024-03-31T02:30:00+00:00"}),
    ("expect_column_values_to_be_in_set", {"column": "device", "value_set": ["a", "b"]}),
    ("expect_column_values_to_be_in_set", {"column": "whole", "value_set": [1, 2.0, 2.5, 3]}),
    ("expect_column_values_to_be_in_set", {"column": "number", "value_set": [1, 2]}),
    ("expect_column_values_to_be_in_set", {"column": "text", "value_set": ["alpha", ""]}),
    ("expect_column_values_to_not_be_in_set", {"column": "device", "value_set": ["d", "e"]}),
    ("expect_column_values_to_not_be_in_set", {"column": "number", "value_set": [2.0]}),
    ("expect_column_values_to_be_unique", {"column": "device"}),
    ("expect_column_values_to_be_unique", {"column": "number"}),
    ("expect_column_values_to_be_unique", {"column": "time"}),
    ("expect_column_values_to_be_increasing", {"column": "rank"}),
    ("expect_column_values_to_be_increasing", {"column": "rank", "strictly": True}),
    ("expect_column_values_to_be_increasing", {"column": "number"}),
    ("expect_column_values_to_be_increasing", {"column": "time", "strictly": True}),
    ("expect_column_values_to_be_decreasing", {"column": "number"}),
    ("expect_column_values_to_be_decreasing", {"column": "rank", "strictly": True}),
    ("expect_column_values_to_match_regex", {"column": "text", "regex": "^[aB]"}),
    ("expect_column_values_to_not_match_regex", {"column": "text", "regex": "a$"}),
    ("expect_column_values_to_match_regex_list", {"column": "text", "regex_list": ["^a", "ta"]}),
    ("expect_column_values_to_match_regex_list", {"column": "text", "regex_list": ["a", "l"], "match_on": "all"}),
    ("expect_column_values_to_not_match_regex_list", {"column": "text", "regex_list": ["^a", "x{3}"]}),
    ("expect_column_value_lengths_to_be_between", {"column": "text", "min_value": 1, "max_value": 5}),
    ("expect_column_value_lengths_to_be_between", {"column": "text", "min_value": 4, "strict_min": True}),
    ("expect_column_value_lengths_to_equal", {"column": "text", "value": 5}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["device", "number"]}),
    ("expect_compound_columns_to_be_unique", {"column_list": ["number", "other"]}),
    (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["number", "other"], "ignore_row_if": "any_value_is_missing"},
    ),
    ("expect_compound_columns_to_be_unique", {"column_list": ["device", "time"], "ignore_row_if": "never"}),
    ("expect_multicolumn_sum_to_equal", {"column_list": ["number", "other"], "sum_total": 4}),
    ("expect_multicolumn_values_to_be_equal", {"column_list": ["number", "other"], "ignore_row_if": "never"}),
    ("expect_select_column_values_to_be_unique_within_record", {"column_list": ["number", "other", "rank"]}),
    ("expect_column_pair_values_to_be_equal", {"column_A": "number", "column_B": "other"}),
    (
        "expect_column_pair_values_to_be_equal",
        {"column_A": "number", "column_B": "other", "ignore_row_if": "neither"},
    ),
    ("expect_column_pair_values_a_to_be_greater_than_b", {"column_A": "number", "column_B": "other"}),
    (
        "expect_column_pair_values_a_to_be_greater_than_b",
        {"column_A": "number", "column_B": "other", "or_equal": True, "ignore_row_if": "either_value_is_missing"},
    ),
    (
        "expect_column_pair_values_to_be_in_set",
        {"column_A": "device", "column_B": "number", "value_pairs_set": [["a", 1.0], ["b", 2.0], ["b", None]]},
    ),
]

VALUES: list[tuple[str, dict[str, Any]]] = [
    ("expect_column_min_to_be_between", {"column": "number", "min_value": 0}),
    ("expect_column_max_to_be_between", {"column": "whole", "max_value": 8}),
    ("expect_column_max_to_be_between", {"column": "time", "max_value": START + timedelta(hours=5)}),
    ("expect_column_min_to_be_between", {"column": "time", "min_value": "2024-03-30T00:00:00+00:00"}),
    ("expect_column_mean_to_be_between", {"column": "number", "min_value": 0, "max_value": 10}),
    ("expect_column_median_to_be_between", {"column": "number", "min_value": 2, "strict_min": True}),
    ("expect_column_stdev_to_be_between", {"column": "number", "max_value": 10}),
    ("expect_column_sum_to_be_between", {"column": "number", "min_value": 0}),
    ("expect_column_sum_to_be_between", {"column": "whole", "max_value": 20}),
    *(
        (
            "expect_column_quantile_values_to_be_between",
            {
                "column": "number",
                "quantile_ranges": {"quantiles": [0.0, 0.1, 0.5, 0.9, 1.0], "value_ranges": [[None, 3]] * 5},
                "allow_relative_error": how,
            },
        )
        for how in (False, "linear", "lower", "higher", "midpoint", "nearest")
    ),
    ("expect_column_unique_value_count_to_be_between", {"column": "number", "max_value": 4}),
    ("expect_column_unique_value_count_to_be_between", {"column": "text", "min_value": 6}),
    ("expect_column_proportion_of_unique_values_to_be_between", {"column": "number", "min_value": 0.9}),
    ("expect_column_distinct_values_to_be_in_set", {"column": "device", "value_set": ["a", "b", "c"]}),
    ("expect_column_distinct_values_to_be_in_set", {"column": "number", "value_set": [1, 2, 3.5]}),
    ("expect_column_distinct_values_to_contain_set", {"column": "device", "value_set": ["a", "z"]}),
    ("expect_column_distinct_values_to_contain_set", {"column": "whole", "value_set": [1, 2, 9]}),
    ("expect_column_distinct_values_to_equal_set", {"column": "device", "value_set": ["a", "b", "c", "d"]}),
    ("expect_column_distinct_values_to_equal_set", {"column": "rank", "value_set": [1, 2, 99]}),
    ("expect_column_most_common_value_to_be_in_set", {"column": "device", "value_set": ["a"]}),
    ("expect_column_distinct_values_to_contain_set", {"column": "device", "value_set": ["a", "c"]}),
    ("expect_column_median_to_be_between", {"column": "number", "min_value": 2}),
    ("expect_column_stdev_to_be_between", {"column": "number", "min_value": 10}),
    ("expect_column_proportion_of_non_null_values_to_be_between", {"column": "number", "min_value": 0.8}),
    ("expect_column_proportion_of_non_null_values_to_be_between", {"column": "rank", "min_value": 1}),
    ("expect_table_row_count_to_be_between", {"min_value": 3}),
    ("expect_table_row_count_to_equal", {"value": 8}),
]

TABLE: Expectations = [
    ("expect_column_to_exist", {"column": "number"}),
    ("expect_column_to_exist", {"column": "number", "column_index": 3}),
    ("expect_column_to_exist", {"column": "nowhere"}),
    ("expect_table_columns_to_match_ordered_list", {"column_list": FULL.columns}),
    ("expect_table_columns_to_match_ordered_list", {"column_list": FULL.columns[::-1]}),
    ("expect_table_columns_to_match_set", {"column_set": ["device", "number"], "exact_match": False}),
    ("expect_table_columns_to_match_set", {"column_set": ["device", "nowhere"]}),
    ("expect_table_column_count_to_equal", {"value": 8}),
    ("expect_table_column_count_to_equal", {"value": 7}),
    ("expect_table_column_count_to_be_between", {"max_value": 3}),
    ("expect_table_column_count_to_be_between", {"min_value": 8, "max_value": 8}),
]


def same(found: list[tuple[str, Outcome, Outcome]]) -> None:
    """Fail where the two ended differently, or only one of them with an error."""
    different = [
        f"{name}\npolars: {ours}\npandas: {theirs}"
        for name, ours, theirs in found
        if bool(ours["error"]) != bool(theirs["error"]) or _shown(ours) != _shown(theirs)
    ]
    if different:
        pytest.fail("\n\n".join(different))


def _shown(outcome: Outcome) -> Any:
    """What must be equal: all but the query, which is in another language, the order of a set, and counts of NaN.

    Great Expectations counts the values listed; for pandas each NaN is another value.
    """
    result = {key: value for key, value in outcome["result"].items() if key != "unexpected_index_query"}
    if "None" in str(result.get("partial_unexpected_list")):
        result.pop("partial_unexpected_counts", None)
    if "partial_missing_list" in result:
        result["partial_missing_list"] = sorted(result["partial_missing_list"], key=str)
    return outcome["success"], result


@pytest.mark.parametrize("lazy", [False, True], ids=["frame", "lazy"])
@pytest.mark.parametrize("frame", FRAMES)
def test_every_expectation_ends_as_on_pandas(both: Both, frame: str, lazy: bool) -> None:
    """Values, missing values, NaN, no rows, no values at all, and a zone that changes its hour."""
    same(both(FRAMES[frame], [*MAPS, *VALUES, *TABLE], lazy=lazy))


def test_every_supported_expectation_is_compared_met_and_unmet(contexts: Contexts) -> None:
    """What the engine declares as supported has a case above, and cases that pass and that fail."""
    verdicts: dict[str, set[bool]] = {name: set() for name in supported_expectations()}
    cases = [*MAPS, *VALUES, *TABLE]
    for frame in FRAMES.values():
        for (name, _), outcome in zip(cases, contexts.run("polars", frame, cases, "BOOLEAN_ONLY"), strict=True):
            verdicts[name].add(outcome["success"])
    assert {name: found for name, found in verdicts.items() if found != {True, False}} == {}


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "expect_column_kl_divergence_to_be_less_than": {
        "column": "device",
        "partition_object": {"values": ["a", "b"], "weights": [0.5, 0.5]},
        "threshold": 0.1,
    },
    "expect_column_type_to_be": {"column": "number", "type_": "float64"},
    "expect_column_value_z_scores_to_be_less_than": {"column": "number", "threshold": 3, "double_sided": True},
    "expect_column_values_to_be_dateutil_parseable": {"column": "text"},
    "expect_column_values_to_be_in_type_list": {"column": "number", "type_list": ["float64"]},
    "expect_column_values_to_be_json_parseable": {"column": "text"},
    "expect_column_values_to_be_of_type": {"column": "number", "type_": "float64"},
    "expect_column_values_to_match_json_schema": {"column": "text", "json_schema": {}},
    "expect_column_values_to_match_like_pattern": {"column": "text", "like_pattern": "a%"},
    "expect_column_values_to_match_like_pattern_list": {"column": "text", "like_pattern_list": ["a%"]},
    "expect_column_values_to_match_strftime_format": {"column": "text", "strftime_format": "%Y"},
    "expect_column_values_to_not_be_outliers": {"column": "number"},
    "expect_column_values_to_not_match_like_pattern": {"column": "text", "like_pattern": "a%"},
    "expect_column_values_to_not_match_like_pattern_list": {"column": "text", "like_pattern_list": ["a%"]},
    "expect_query_results_to_match_comparison": {
        "base_query": "select 1",
        "comparison_data_source_name": "polars",
        "comparison_query": "select 1",
    },
    "expect_table_row_count_to_equal_other_table": {"other_table_name": "other"},
    "unexpected_rows_expectation": {"unexpected_rows_query": "select * from {batch}"},
}


def test_every_other_expectation_is_refused_by_name(contexts: Contexts) -> None:
    """All that Great Expectations has of its own and that is not supported, at once: each its own clear error."""
    core = {
        name
        for name in registry.list_registered_expectation_implementations()
        if registry.get_expectation_impl(name).__module__.startswith("great_expectations.")
    }
    assert set(UNSUPPORTED) == core - set(supported_expectations())
    outcomes = contexts.run("polars", FULL, list(UNSUPPORTED.items()), "SUMMARY")
    for name, outcome in zip(UNSUPPORTED, outcomes, strict=True):
        assert name in outcome["error"]
        assert "not supported on Polars" in outcome["error"]
        assert not outcome["success"]


CONDITIONS: dict[str, Any] = {
    "equal": CONDITION,
    "not equal, of values some of which are missing": _compare("number", "!=", 2.0),
    "less": _compare("number", "<", 3.0),
    "at least, of whole numbers": _compare("rank", ">=", 4),
    "among": _compare("device", "IN", ["a", "b"]),
    "not among": _compare("number", "NOT_IN", [1.0, 100.0]),
    "missing": {"type": "nullity", "column": {"name": "number"}, "is_null": True},
    "there": {"type": "nullity", "column": {"name": "text"}, "is_null": False},
    "both": {"type": "and", "conditions": [CONDITION, _compare("rank", ">", 1)]},
    "either": {"type": "or", "conditions": [CONDITION, _compare("rank", ">", 6)]},
    "no row": _compare("device", "==", "nobody"),
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_row_conditions_leave_the_same_rows(both: Both, condition: str) -> None:
    """Also where the condition's own column has missing values."""
    expectations = [*MAPS, *VALUES[:5], *VALUES[-10:-2]]
    same(both(FULL, [(name, {**kwargs, "row_condition": CONDITIONS[condition]}) for name, kwargs in expectations]))


@pytest.mark.parametrize("mostly", [0.0, 0.25, 0.5, 0.75, 0.875])
def test_the_tolerated_share_is_of_the_same_rows(both: Both, mostly: float) -> None:
    """The share of the values that there are, which decides the verdict."""
    same(both(FULL, [(name, {**kwargs, "mostly": mostly}) for name, kwargs in MAPS]))


@pytest.mark.parametrize(
    "result_format",
    [
        "BOOLEAN_ONLY",
        "BASIC",
        "SUMMARY",
        {"result_format": "SUMMARY", "partial_unexpected_count": 2, "include_unexpected_rows": True},
        {"result_format": "COMPLETE", "unexpected_index_column_names": ["rank", "device"]},
        {"result_format": "COMPLETE", "unexpected_index_column_names": ["rank"], "exclude_unexpected_values": True},
        {"result_format": "COMPLETE", "include_unexpected_rows": True},
    ],
    ids=str,
)
def test_each_result_format_tells_the_same(both: Both, result_format: Any) -> None:
    """Counts, samples, names of rows and whole rows."""
    same(both(FULL, MAPS, result_format))


FLOATS = st.one_of(st.none(), st.just(NAN), st.sampled_from([INF, -INF, 0.0, -0.0, 1.0]), st.floats(-1e6, 1e6))
ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), FLOATS, FLOATS, st.one_of(st.none(), st.integers(-5, 5))), min_size=0, max_size=30
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, low=st.floats(-10, 10), width=st.floats(0, 100))
def test_any_numbers_end_as_on_pandas(both: Both, rows: list[tuple[Any, ...]], low: float, width: float) -> None:
    """Infinities, negative zero, NaN and nulls in one column."""
    schema = {"device": pl.String, "number": pl.Float64, "other": pl.Float64, "whole": pl.Int64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    bounds = {"column": "number", "min_value": low, "max_value": low + width}
    expectations: Expectations = [
        ("expect_column_values_to_be_between", bounds),
        ("expect_column_values_to_be_between", {**bounds, "strict_min": True, "row_condition": CONDITION}),
        ("expect_column_values_to_be_between", {**bounds, "row_condition": _compare("other", ">", low)}),
        ("expect_column_values_to_be_in_set", {"column": "whole", "value_set": [1, 2, 3]}),
        ("expect_column_values_to_be_unique", {"column": "number"}),
        ("expect_compound_columns_to_be_unique", {"column_list": ["device", "number"]}),
        ("expect_column_values_to_be_increasing", {"column": "number", "strictly": True}),
        ("expect_column_values_to_be_decreasing", {"column": "number"}),
        ("expect_column_pair_values_to_be_equal", {"column_A": "number", "column_B": "other"}),
        ("expect_column_max_to_be_between", {"column": "number", "max_value": low}),
        ("expect_column_unique_value_count_to_be_between", {"column": "number", "max_value": 3}),
    ]
    same(both(frame, expectations))
