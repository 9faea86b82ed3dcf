"""The same suite on Polars and on pandas, and their outcomes as plain values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Expectations = Sequence[tuple[str, dict[str, Any]]]
Outcome = dict[str, Any]
Both = Callable[..., list[tuple[str, Outcome, Outcome]]]


@dataclass
class Contexts:
    """A context of Great Expectations with both data sources."""

    context: Any
    suites: int = 0

    def run(self, kind: str, frame: Any, expectations: Expectations, result_format: Any) -> list[Outcome]:
        """Validate a frame; return verdict, result and error of each expectation, in order."""
        import great_expectations as gx
        from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

        self.suites += 1
        name = f"{kind}-{self.suites}"
        configured = [ExpectationConfiguration(type=type_, kwargs=kwargs) for type_, kwargs in expectations]
        suite = self.context.suites.add(gx.ExpectationSuite(name, expectations=configured))
        asset = self.context.data_sources.get(kind).add_dataframe_asset(name)
        data = asset.add_batch_definition_whole_dataframe("whole")
        definition = self.context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
        found = definition.run(batch_parameters={"dataframe": frame}, result_format=result_format)
        by_id = {one.expectation_config.id: one for one in found.results}
        ordered = [by_id[one.id] for one in suite.expectations]
        return [{"success": one.success, "result": plain(one.result), "error": _error(one)} for one in ordered]


def plain(value: Any) -> Any:
    """Return a value as Python's own types: missing ones as None, floats rounded to 12 digits."""
    if isinstance(value, dict):
        return {plain(key): plain(one) for key, one in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # rows as pandas gives them
        return plain(value.to_dict("records"))
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    if hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime()
    value = value.item() if hasattr(value, "item") else value
    if value is None or value != value:
        return None
    if isinstance(value, datetime):
        return value.isoformat()
    return float(f"{value:.12g}") if isinstance(value, float) and not math.isinf(value) else value


def _error(outcome: Any) -> str:
    info = outcome.exception_info or {}
    if "raised_exception" in info:
        return str(info.get("exception_message") or "") if info["raised_exception"] else ""
    return "; ".join(str(one["exception_message"]) for one in info.values())
