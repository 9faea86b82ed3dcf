"""A context of Great Expectations in memory, ready for frames: expectations in, their results out in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import great_expectations as gx
import polars as pl
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

import expectations.polars_engine.datasource  # noqa: F401 - contexts made after this have `add_polars`

DOCS_SITE: Final = "reports"

Kind = Literal["polars", "pandas"]


@dataclass(frozen=True)
class Prepared:
    """A suite and the checkpoint that runs it.

    Attributes:
        suite: of Great Expectations.
        checkpoint: of Great Expectations; what runs it gives a frame.
        kind: the frames that it takes.
    """

    suite: Any
    checkpoint: Any
    kind: Kind

    def run(self, frame: Any, run_name: str | None = None) -> Any:
        """Return Great Expectations' result of the suite.

        Args:
            frame: a Polars frame, also where it is pandas that computes; or a pandas frame there.
            run_name: what Data Docs call the run.
        """
        given = frame.to_pandas() if self.kind == "pandas" and isinstance(frame, pl.DataFrame) else frame
        run_id = RunIdentifier(run_name=run_name) if run_name else None
        (found,) = self.checkpoint.run(batch_parameters={"dataframe": given}, run_id=run_id).run_results.values()
        return found

    def in_order(self, found: Any) -> list[Any]:
        """Return the expectations' results in the order in which they were given, which Great Expectations changes."""
        by_id = {one.expectation_config.id: one for one in found.results}
        return [by_id[one.id] for one in self.suite.expectations]


class Workbench:
    """One context in memory, with a data source a kind of frame, and Data Docs in a folder where one is given.

    Attributes:
        context: of Great Expectations.
    """

    def __init__(self, docs: Path | None = None, max_unexpected_rows: int | None = None) -> None:
        """Make the context.

        Args:
            docs: an existing folder for Data Docs.
            max_unexpected_rows: how many unexpected rows a COMPLETE result lists at most, on Polars; the engine's
                own limit where left out.
        """
        config = DataContextConfig(
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            data_docs_sites={DOCS_SITE: _site(docs)} if docs else {},
        )
        self.context: Any = gx.get_context(mode="ephemeral", project_config=config)
        limit = {} if max_unexpected_rows is None else {"max_unexpected_rows": max_unexpected_rows}
        self._sources = {
            "polars": self.context.data_sources.add_polars("polars", **limit),
            "pandas": self.context.data_sources.add_pandas("pandas"),
        }

    def prepare(
        self, name: str, wanted: Sequence[ExpectationConfiguration], result_format: Any, kind: Kind = "polars"
    ) -> Prepared:
        """Make a suite of expectations, to be run over frames.

        Args:
            name: of the suite, its asset and its checkpoint; once a workbench.
            wanted: the expectations.
            result_format: how much results tell, as Great Expectations takes it.
            kind: which engine computes.
        """
        suite = self.context.suites.add(gx.ExpectationSuite(name, expectations=list(wanted)))
        data = self._sources[kind].add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=data, suite=suite)
        definition = self.context.validation_definitions.add(definition)
        checkpoint = gx.Checkpoint(name=name, validation_definitions=[definition], result_format=result_format)
        return Prepared(suite, self.context.checkpoints.add(checkpoint), kind)

    def build_docs(self) -> None:
        """Write Data Docs of all that was run so far."""
        self.context.build_data_docs(site_names=[DOCS_SITE])


def _site(folder: Path) -> dict[str, Any]:
    """Return the configuration of Data Docs in a folder."""
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
