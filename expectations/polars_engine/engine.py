"""The engine that Great Expectations drives: asked for metrics level by level, it answers each level in one pass.

A value or an error is kept until other data is loaded: Great Expectations asks three times for what failed, and for
all that was asked together with it.
"""

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from great_expectations.core.batch import BatchData, BatchMarkers
from great_expectations.core.batch_spec import RuntimeDataBatchSpec
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.exceptions.exceptions import BatchSpecError, MetricResolutionError
from great_expectations.execution_engine.execution_engine import ExecutionEngine
from great_expectations.expectations.registry import get_metric_provider
from great_expectations.expectations.row_conditions import (
    AndCondition,
    ComparisonCondition,
    NullityCondition,
    OrCondition,
)
from great_expectations.validator.metric_configuration import MetricConfiguration

from expectations.polars_engine.conditions import mask
from expectations.polars_engine.domain import row_mask
from expectations.polars_engine.errors import PolarsEngineError
from expectations.polars_engine.plans import Batch, Failure, Plan, Request, compute
from expectations.polars_engine.registration import register

MOST_ROWS = 10_000  # unexpected rows that a COMPLETE result lists at most, unless the data source says otherwise


class PolarsBatchData(BatchData):
    """One batch as Great Expectations carries it."""

    def __init__(self, execution_engine: ExecutionEngine[Any], frame: pl.DataFrame | pl.LazyFrame) -> None:
        """Keep a frame; of a lazy one, its schema is read."""
        super().__init__(execution_engine=execution_engine)
        self.batch = Batch(frame, frame.collect_schema())


class PolarsExecutionEngine(ExecutionEngine[pl.Expr]):
    """Computes Great Expectations' metrics on Polars frames."""

    def __init__(self, max_unexpected_rows: int = MOST_ROWS, **further: Any) -> None:
        """Make the engine's metrics known to Great Expectations.

        Args:
            max_unexpected_rows: how many unexpected rows a COMPLETE result lists at most; all are counted.
            further: what every engine takes.
        """
        register(PolarsExecutionEngine)
        self._most_rows = max_unexpected_rows
        self._results: dict[Any, Any] = {}
        super().__init__(**further)
        self.config["max_unexpected_rows"] = max_unexpected_rows

    def get_batch_data_and_markers(self, batch_spec: Any) -> tuple[PolarsBatchData, BatchMarkers]:
        """Take the frame out of a batch's description, which is written into results and so must not hold data.

        Raises:
            BatchSpecError: there is no Polars frame in it.
        """
        frame = batch_spec.batch_data if isinstance(batch_spec, RuntimeDataBatchSpec) else None
        if not isinstance(frame, pl.DataFrame | pl.LazyFrame):
            raise BatchSpecError(f"expected a polars.DataFrame or polars.LazyFrame, got {type(frame).__name__}")
        batch_spec.batch_data = f"polars.{type(frame).__name__}"
        loaded = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return PolarsBatchData(self, frame), BatchMarkers({"ge_load_time": loaded})

    def load_batch_data(self, batch_id: str, batch_data: Any) -> None:
        """Take up a batch; what was computed of others is forgotten, for a batch's name says nothing of its data."""
        self._results.clear()
        super().load_batch_data(batch_id, batch_data)

    def resolve_metrics(
        self,
        metrics_to_resolve: Iterable[MetricConfiguration],
        metrics: Mapping[Any, Any] | None = None,
        runtime_configuration: dict[str, Any] | None = None,
    ) -> dict[Any, Any]:
        """Compute metrics, all in one pass.

        Args:
            metrics_to_resolve: those that are asked for, of one batch.
            metrics: those that they depend on, computed before.
            runtime_configuration: not used.

        Raises:
            MetricResolutionError: one or more of them cannot be computed; the others are kept.
        """
        wanted = {metric.id: metric for metric in metrics_to_resolve}
        missing = {key: metric for key, metric in wanted.items() if key not in self._results}
        if missing:
            self._compute(missing, metrics or {})
        for key in wanted:
            if isinstance(self._results[key], Failure):
                raise self._failed(wanted, self._results[key].error)
        return {key: self._results[key] for key in wanted}

    def get_domain_records(self, domain_kwargs: dict[str, Any]) -> pl.LazyFrame:
        """Return the rows that a row condition leaves."""
        batch = self._batch(domain_kwargs.get("batch_id"))
        rows = row_mask(domain_kwargs.get("row_condition"), batch.schema)
        return batch.frame.lazy() if rows is None else batch.frame.lazy().filter(rows)

    def get_compute_domain(
        self,
        domain_kwargs: dict[str, Any],
        domain_type: str | MetricDomainTypes,
        accessor_keys: Iterable[str] | None = None,
    ) -> tuple[pl.LazyFrame, dict[str, Any], dict[str, Any]]:
        """Return the rows of a domain, and its keywords split into those of rows and those of columns."""
        split = self._partition_domain_kwargs(domain_kwargs, domain_type, accessor_keys)
        return self.get_domain_records(domain_kwargs), split.compute, split.accessor

    def _compute(self, missing: Mapping[Any, MetricConfiguration], known: Mapping[Any, Any]) -> None:
        """Plan all metrics, then compute what could be planned."""
        (batch_id,) = {metric.metric_domain_kwargs.get("batch_id") for metric in missing.values()}
        batch = self._batch(batch_id)
        planned = {key: self._planned(batch, metric, known) for key, metric in missing.items()}
        plans = {key: plan for key, plan in planned.items() if isinstance(plan, Plan)}
        self._results.update(planned)
        self._results.update(zip(plans, compute(batch, list(plans.values())), strict=True))

    def _planned(self, batch: Batch, metric: MetricConfiguration, known: Mapping[Any, Any]) -> Plan | Failure:
        """Return how a metric is computed, or why it cannot be."""
        _, build = get_metric_provider(metric.metric_name, self)
        needs = {name: known[need.id] for name, need in metric.metric_dependencies.items()}
        request = Request(batch, metric.metric_domain_kwargs, metric.metric_value_kwargs, needs, self._most_rows)
        try:
            plan: Plan = build(request)
        except Exception as exc:  # whatever is wrong with one metric must not cost the others
            return Failure(exc)
        return plan

    def _failed(self, wanted: Mapping[Any, MetricConfiguration], error: Exception) -> MetricResolutionError:
        """Return one error for all metrics that failed for the same reason."""
        same = [key for key in wanted if isinstance(self._results[key], Failure)]
        alike = [wanted[key] for key in same if str(self._results[key].error) == str(error)]
        failure = MetricResolutionError(message=str(error), failed_metrics=alike)
        failure.__cause__ = error
        return failure

    def _batch(self, batch_id: str | None) -> Batch:
        """Return a batch by name, or the last that was loaded.

        Raises:
            PolarsEngineError: there is none.
        """
        data = self.batch_manager.batch_data_cache.get(batch_id or "", self.batch_manager.active_batch_data)
        if not isinstance(data, PolarsBatchData):
            raise PolarsEngineError(f"batch {batch_id} is not loaded; load one with `load_batch_data`")
        return data.batch

    def _comparison_condition_to_filter_clause(self, condition: ComparisonCondition) -> pl.Expr:
        return mask(condition, self._batch(None).schema)

    def _nullity_condition_to_filter_clause(self, condition: NullityCondition) -> pl.Expr:
        return mask(condition, self._batch(None).schema)

    def _and_condition_to_filter_clause(self, condition: AndCondition) -> pl.Expr:
        return mask(condition, self._batch(None).schema)

    def _or_condition_to_filter_clause(self, condition: OrCondition) -> pl.Expr:
        return mask(condition, self._batch(None).schema)
