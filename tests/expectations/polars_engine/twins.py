"""The same suite on Polars and on pandas, and their outcomes as plain values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

from expectations.polars_engine.workbench import Kind, Prepared, Workbench

Expectations = Sequence[tuple[str, dict[str, Any]]]
Outcome = dict[str, Any]
Both = Callable[..., list[tuple[str, Outcome, Outcome]]]


@dataclass
class Contexts:
    """A context of Great Expectations with both data sources."""

    workbench: Workbench
    suites: int = 0

    def prepare(self, kind: Kind, expectations: Expectations, result_format: Any) -> Prepared:
        """Make a suite with a name of its own."""
        self.suites += 1
        configured = [ExpectationConfiguration(type=type_, kwargs=kwargs) for type_, kwargs in expectations]
        return self.workbench.prepare(f"{kind}-{self.suites}", configured, result_format, kind)

    def run(self, kind: Kind, frame: Any, expectations: Expectations, result_format: Any) -> list[Outcome]:
        """Validate a frame; return verdict, result and error of each expectation, in order."""
        prepared = self.prepare(kind, expectations, result_format)
        ordered = prepared.in_order(prepared.run(frame))
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
