"""Great Expectations on Polars: an execution engine of Great Expectations' own kind, and the data source to reach it.

Import the package before `great_expectations.get_context()`; contexts then have `data_sources.add_polars(name)`, whose
data frame assets take `batch_parameters={"dataframe": frame}` with a `polars.DataFrame` or `LazyFrame`. Suites,
checkpoints, results, stores and Data Docs are Great Expectations' own and unchanged.

A suite takes two passes over the data: one for all counts and aggregates together, row conditions being masks within
it, and one for samples of the rows that do not fit, only where there are any. Verdicts, counts and lists are those of
Great Expectations on pandas: NaN is missing, and a comparison with a missing value is false.

`engine` is what Great Expectations drives, `datasource` what people configure, `registration` the list of what is
supported, `metrics` how each is computed, `conditions`, `domain` and `literals` what expressions are made of, `plans`
how they are run together. `groups` counts unexpected rows by a column, `workbench` is a context in memory.
"""

from expectations.polars_engine.datasource import PolarsDataFrameAsset, PolarsDatasource
from expectations.polars_engine.engine import PolarsBatchData, PolarsExecutionEngine
from expectations.polars_engine.errors import PolarsEngineError, UnsupportedError
from expectations.polars_engine.registration import supported_expectations

__all__ = [
    "PolarsBatchData",
    "PolarsDataFrameAsset",
    "PolarsDatasource",
    "PolarsEngineError",
    "PolarsExecutionEngine",
    "UnsupportedError",
    "supported_expectations",
]
