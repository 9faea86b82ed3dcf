"""Which metrics are supported, and their entry into Great Expectations' registry.

Great Expectations' decorators accept its built-in engines alone, so metrics are registered by `register_metric`, with
the domain and arguments that the registry has of them. Every other metric that the registry knows gets a provider that
says which expectation wanted it and is not supported.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from great_expectations.core.metric_function_types import MetricFunctionTypes
from great_expectations.execution_engine.execution_engine import ExecutionEngine
from great_expectations.expectations import registry
from great_expectations.expectations.metrics.metric_provider import MetricProvider
from great_expectations.validator.metric_configuration import MetricConfiguration

from expectations.polars_engine.domain import OTHER_TABLE
from expectations.polars_engine.errors import UnsupportedError
from expectations.polars_engine.memory import remember_expectations
from expectations.polars_engine.metrics import aggregates, maps, table
from expectations.polars_engine.plans import Builder

QUESTIONS: Final[Mapping[str, maps.Question]] = MappingProxyType(
    {
        "column_values.between": maps.between,
        "column_values.decreasing": maps.decreasing,
        "column_values.in_set": maps.in_set,
        "column_values.increasing": maps.increasing,
        "column_values.match_regex": maps.match_regex,
        "column_values.match_regex_list": maps.match_regex_list,
        "column_values.nonnull": maps.nonnull,
        "column_values.not_in_set": maps.not_in_set,
        "column_values.not_match_regex": maps.not_match_regex,
        "column_values.not_match_regex_list": maps.not_match_regex_list,
        "column_values.null": maps.null,
        "column_values.unique": maps.unique,
        "column_values.value_length.between": maps.value_length_between,
        "column_values.value_length.equals": maps.value_length_equals,
        "column_pair_values.a_greater_than_b": maps.pair_greater,
        "column_pair_values.equal": maps.pair_equal,
        "column_pair_values.in_set": maps.pair_in_set,
        "compound_columns.unique": maps.compound_unique,
        "multicolumn_sum.equal": maps.sum_equal,
        "multicolumn_values.equal": maps.all_equal,
        "select_column_values.unique.within_record": maps.unique_within_row,
    }
)

VALUES: Final[Mapping[str, Builder]] = MappingProxyType(
    {
        "column.distinct_values": aggregates.distinct_values,
        "column.distinct_values.count": aggregates.distinct_count,
        "column.distinct_values.missing_from_column": aggregates.missing_from_column,
        "column.distinct_values.missing_from_column.count": aggregates.missing_from_column_count,
        "column.distinct_values.not_in_set": aggregates.not_in_set,
        "column.distinct_values.not_in_set.count": aggregates.not_in_set_count,
        "column.max": aggregates.maximum,
        "column.mean": aggregates.mean,
        "column.median": aggregates.median,
        "column.min": aggregates.minimum,
        "column.most_common_value": aggregates.most_common_values,
        "column.non_null_count": aggregates.non_null_count,
        "column.non_null_proportion": aggregates.non_null_share,
        "column.quantile_values": aggregates.quantiles,
        "column.standard_deviation": aggregates.standard_deviation,
        "column.sum": aggregates.total,
        "column.unique_proportion": aggregates.unique_share,
        "table.column_count": table.column_count,
        "table.columns": table.columns,
        "table.row_count": table.row_count,
    }
)

# What expectations ask for without saying so in their classes.
_UNSAID: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "expect_column_kl_divergence_to_be_less_than": ("column.value_counts", "column.partition", "column.histogram"),
        "expect_column_values_to_be_in_type_list": ("table.column_types",),
        "expect_column_values_to_be_of_type": ("table.column_types",),
        OTHER_TABLE: ("table.row_count of another table",),
    }
)
_COUNT: Final = "unexpected_count"
_OF_ROWS: Final[Mapping[str, Callable[..., Any]]] = MappingProxyType(
    {
        _COUNT: maps.unexpected_count,
        "filtered_row_count": maps.filtered_row_count,
        "unexpected_values": maps.unexpected_values,
        "unexpected_index_list": maps.unexpected_index_list,
        "unexpected_index_query": maps.unexpected_index_query,
        "unexpected_rows": maps.unexpected_rows,
    }
)


class ByItself(MetricProvider):
    """A metric that needs no other."""

    @classmethod
    def get_evaluation_dependencies(cls, *_args: Any, **_kwargs: Any) -> dict[str, MetricConfiguration]:
        """Return nothing."""
        return {}


class AfterCount(MetricProvider):
    """A sample of the rows that do not fit: taken after they are counted, as mostly there are none."""

    @classmethod
    def get_evaluation_dependencies(
        cls, metric: MetricConfiguration, *_args: Any, **_kwargs: Any
    ) -> dict[str, MetricConfiguration]:
        """Return the count."""
        base = metric.metric_name.rpartition(".")[0]
        values = {name: value for name, value in metric.metric_value_kwargs.items() if name != "result_format"}
        return {_COUNT: MetricConfiguration(f"{base}.{_COUNT}", metric.metric_domain_kwargs, values)}


class Unsupported(MetricProvider):
    """A metric that is not computed here."""

    @classmethod
    def get_evaluation_dependencies(
        cls, metric: MetricConfiguration, *_args: Any, **_kwargs: Any
    ) -> dict[str, MetricConfiguration]:
        """Refuse it.

        Raises:
            UnsupportedError: always; names the expectation.
        """
        wanted = " or ".join(_expectations_on(metric.metric_name)) or f"the metric {metric.metric_name}"
        raise UnsupportedError(
            f"{wanted} is not supported on Polars (no metric {metric.metric_name}); leave it out, or validate "
            "`frame.to_pandas()` through a pandas data source; `supported_expectations()` lists what there is"
        )


def supported_expectations() -> tuple[str, ...]:
    """Return the names of Great Expectations' expectations that work on Polars."""
    named = ((name, _metrics_of(name)) for name in registry.list_registered_expectation_implementations())
    return tuple(sorted(name for name, needs in named if needs and all(_is_supported(need) for need in needs)))


@functools.cache
def register(engine: type[ExecutionEngine[Any]]) -> None:
    """Enter all metrics into Great Expectations' registry, for an engine; once is enough.

    Args:
        engine: the class that will compute them.
    """
    for name, build in _builders().items():
        _register(engine, name, AfterCount if _is_sample(name) else ByItself, build)
    for name in sorted(set(registry._registered_metrics) - set(_builders())):
        _register(engine, name, Unsupported, _refuse)
    remember_expectations(engine)


def _builders() -> dict[str, Builder]:
    """Return every supported metric by name, as far as this version of Great Expectations knows it."""
    of_rows: dict[str, Builder] = {
        f"{name}.{suffix}": functools.partial(how, question)
        for name, question in QUESTIONS.items()
        for suffix, how in _OF_ROWS.items()
    }
    return {name: build for name, build in {**VALUES, **of_rows}.items() if name in registry._registered_metrics}


def _register(engine: type[ExecutionEngine[Any]], name: str, provider: type[MetricProvider], build: Builder) -> None:
    """Enter one metric, with the keys that the registry has of it."""
    definition = registry._registered_metrics[name]
    registry.register_metric(
        metric_name=name,
        metric_domain_keys=definition["metric_domain_keys"],
        metric_value_keys=definition["metric_value_keys"],
        execution_engine=engine,
        metric_class=provider,
        metric_provider=functools.partial(build),
        metric_fn_type=MetricFunctionTypes.VALUE,
    )


def _refuse(_request: Any) -> Any:
    """Stand in for what is never called: the graph is refused first."""
    raise UnsupportedError("this metric is not supported on Polars")


def _is_sample(name: str) -> bool:
    """Return whether a metric lists rows."""
    suffix = name.rpartition(".")[2]
    return suffix.startswith("unexpected_") and suffix != _COUNT


def _is_supported(metric: str) -> bool:
    """Return whether a metric, or a question, is supported."""
    return metric in QUESTIONS or metric in VALUES


def _expectations_on(metric: str) -> list[str]:
    """Return the expectations that need a metric."""
    names = registry.list_registered_expectation_implementations()
    return sorted(
        name for name in names if any(metric == need or metric.startswith(f"{need}.") for need in _metrics_of(name))
    )


def _metrics_of(expectation: str) -> tuple[str, ...]:
    """Return the metrics and questions that an expectation needs."""
    known = registry.get_expectation_impl(expectation)
    question = getattr(known, "map_metric", None)
    said = (question,) if question else tuple(getattr(known, "metric_dependencies", ()))
    return (*said, *_UNSAID.get(expectation, ()))
