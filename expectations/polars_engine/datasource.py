"""The data source by which a context of Great Expectations reaches the engine: `context.data_sources.add_polars(name)`.

Defining the class makes the method; it must happen before the context is made, and not in a program's main module.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import polars as pl
from great_expectations.compatibility import pydantic
from great_expectations.core import IDDict
from great_expectations.core.batch import LegacyBatchDefinition
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.core.batch_spec import RuntimeDataBatchSpec
from great_expectations.datasource.fluent.batch_identifier_util import make_batch_identifier
from great_expectations.datasource.fluent.batch_request import BatchRequest
from great_expectations.datasource.fluent.interfaces import Batch, DataAsset, Datasource
from great_expectations.exceptions.exceptions import InvalidBatchRequestError

from expectations.polars_engine.engine import MOST_ROWS, PolarsExecutionEngine

AssetType: TypeAlias = type[DataAsset[Any, Any]]
EngineType: TypeAlias = type[PolarsExecutionEngine]  # the classes below have a field `type`, which hides Python's


class PolarsDataFrameAsset(DataAsset[Any, Any]):
    """Data that is given as a frame with every run."""

    type: Literal["dataframe"] = "dataframe"

    class Config:
        """No other fields."""

        extra = pydantic.Extra.forbid

    def test_connection(self) -> None:
        """There is nothing to connect to."""

    def get_batch_parameters_keys(self, partitioner: Any = None) -> tuple[str, ...]:
        """Return the names of what a run must give."""
        return ("dataframe",)

    def add_batch_definition_whole_dataframe(self, name: str) -> BatchDefinition[Any]:
        """Add a batch definition that stands for the whole frame."""
        return self.add_batch_definition(name=name, partitioner=None)

    def build_batch_request(
        self, options: Mapping[str, Any] | None = None, batch_slice: Any = None, partitioner: Any = None
    ) -> BatchRequest[Any]:
        """Return a request for the frame that is given.

        Args:
            options: `{"dataframe": frame}`, a `polars.DataFrame` or `LazyFrame`.
            batch_slice: must be None.
            partitioner: must be None.

        Raises:
            InvalidBatchRequestError: something else is given.
        """
        if batch_slice is not None or partitioner is not None:
            raise InvalidBatchRequestError("a data frame asset is one batch; give neither batch_slice nor partitioner")
        frame = _frame(options)
        return BatchRequest(
            datasource_name=self.datasource.name, data_asset_name=self.name, options={"dataframe": frame}
        )

    def get_batch_identifiers_list(self, batch_request: BatchRequest[Any]) -> list[dict[str, Any]]:
        """Return what tells the batches of a request apart."""
        return [IDDict(batch_request.options)]

    def get_batch(self, batch_request: BatchRequest[Any]) -> Batch:
        """Hand the frame of a request to the engine."""
        self._validate_batch_request(batch_request)
        batch_spec = RuntimeDataBatchSpec(batch_data=_frame(batch_request.options))
        data, markers = self.datasource.get_execution_engine().get_batch_data_and_markers(batch_spec)
        definition = LegacyBatchDefinition(
            datasource_name=self.datasource.name,
            data_connector_name="fluent",
            data_asset_name=self.name,
            batch_identifiers=make_batch_identifier(dict(batch_request.options)),
            batch_spec_passthrough=None,
        )
        return Batch(
            datasource=self.datasource,
            data_asset=self,
            batch_request=batch_request,
            data=data,
            metadata=self._get_batch_metadata_from_batch_request(batch_request, ignore_options=("dataframe",)),
            batch_markers=markers,
            batch_spec=batch_spec,
            batch_definition=definition,
        )

    def _validate_batch_request(self, batch_request: BatchRequest[Any]) -> None:
        """Refuse a request for something else."""
        _frame(batch_request.options)
        if (batch_request.datasource_name, batch_request.data_asset_name) != (self.datasource.name, self.name):
            asked = f"{batch_request.datasource_name}.{batch_request.data_asset_name}"
            raise InvalidBatchRequestError(f"asked for {asked}, but this is {self.datasource.name}.{self.name}")


class PolarsDatasource(Datasource[PolarsDataFrameAsset, PolarsExecutionEngine]):
    """A data source of Polars frames.

    Attributes:
        max_unexpected_rows: how many unexpected rows a COMPLETE result lists at most; all are counted.
    """

    asset_types: ClassVar[list[AssetType]] = [PolarsDataFrameAsset]

    type: Literal["polars"] = "polars"
    assets: list[PolarsDataFrameAsset] = []  # noqa: RUF012 - a field of pydantic's, which copies it
    max_unexpected_rows: int = MOST_ROWS

    @property
    def execution_engine_type(self) -> EngineType:
        """The engine's class."""
        return PolarsExecutionEngine

    def test_connection(self, test_assets: bool = True) -> None:
        """There is nothing to connect to."""

    def add_dataframe_asset(self, name: str, batch_metadata: dict[str, Any] | None = None) -> PolarsDataFrameAsset:
        """Add data that is given as a frame with every run.

        Args:
            name: the asset's name.
            batch_metadata: handed on to every batch.
        """
        return self._add_asset(PolarsDataFrameAsset(name=name, batch_metadata=batch_metadata or {}))


def _frame(options: Mapping[str, Any] | None) -> pl.DataFrame | pl.LazyFrame:
    """Return the one option, a frame.

    Raises:
        InvalidBatchRequestError: it is something else.
    """
    given = dict(options or {})
    frame = given.pop("dataframe", None)
    if given or not isinstance(frame, pl.DataFrame | pl.LazyFrame):
        raise InvalidBatchRequestError(
            "expected batch_parameters={'dataframe': frame} with a polars.DataFrame or polars.LazyFrame, "
            f"got {type(frame).__name__}" + (f" and {', '.join(given)}" if given else "")
        )
    return frame
