"""A context with both engines."""

from typing import Any

import polars as pl
import pytest

from expectations.polars_engine.workbench import Workbench
from tests.expectations.polars_engine.twins import Both, Contexts, Expectations


@pytest.fixture(scope="session")
def contexts() -> Contexts:
    return Contexts(Workbench())


@pytest.fixture(scope="session")
def both(contexts: Contexts) -> Both:
    """Return what both engines find, expectation by expectation."""

    def run(
        frame: pl.DataFrame, expectations: Expectations, result_format: Any = "COMPLETE", lazy: bool = False
    ) -> Any:
        ours = contexts.run("polars", frame.lazy() if lazy else frame, expectations, result_format)
        theirs = contexts.run("pandas", frame, expectations, result_format)
        return [(f"{one[0]} {one[1]}", *pair) for one, *pair in zip(expectations, ours, theirs, strict=True)]

    return run
