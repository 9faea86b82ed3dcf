"""A context with both engines."""

from typing import Any

import polars as pl
import pytest

from tests.expectations.polars_engine.twins import Both, Contexts, Expectations


@pytest.fixture(scope="session")
def contexts() -> Contexts:
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    import expectations.polars_engine  # noqa: F401 - before the context

    config = DataContextConfig(
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    context.data_sources.add_polars("polars")
    context.data_sources.add_pandas("pandas")
    return Contexts(context)


@pytest.fixture(scope="session")
def both(contexts: Contexts) -> Both:
    """Return what both engines find, expectation by expectation."""

    def run(
        frame: pl.DataFrame, expectations: Expectations, result_format: Any = "COMPLETE", lazy: bool = False
    ) -> Any:
        ours = contexts.run("polars", frame.lazy() if lazy else frame, expectations, result_format)
        theirs = contexts.run("pandas", frame.to_pandas(), expectations, result_format)
        return [(f"{one[0]} {one[1]}", *pair) for one, *pair in zip(expectations, ours, theirs, strict=True)]

    return run
