"""What lineage is answered from, read whole and once: tables, MLflow, the release repository, the broker's records."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from fieldloop.domain.release import Manifest
from fieldloop.domain.rollout import Sighting
from fieldloop.domain.rollout.record import Rollout
from fieldloop.stores import broker, fleet, registry, releases, rollouts
from fieldloop.stores.lake import Commit, Lake
from fieldloop.stores.registry import ModelVersion, Trained
from fieldloop.stores.releases import Published
from fieldloop.stores.settings import Settings
from tasks.tags import ALGORITHM

RUNS: Final = 200  # runs that are read of one place in the lineage, at most


@dataclass(frozen=True)
class Records:
    """What is recorded, each kind read when it is first asked for.

    Attributes:
        settings: the installation.
        lake: its tables.
    """

    settings: Settings
    lake: Lake

    @cached_property
    def versions(self) -> list[ModelVersion]:
        """All registered versions, the newest first."""
        return registry.versions(self.settings)

    @cached_property
    def releases(self) -> tuple[Published, ...]:
        """All releases in the repository."""
        return releases.published(self.settings)

    @cached_property
    def devices(self) -> dict[str, str]:
        """The profile of each device."""
        return fleet.devices(self.lake)

    @cached_property
    def targets(self) -> dict[str, tuple[str, ...]]:
        """The labels of each edge target."""
        return {target.name: target.labels for target in fleet.targets(self.lake)}

    @cached_property
    def _broker(self) -> tuple[tuple[Rollout, ...], Mapping[str, Sighting]]:
        async def read() -> tuple[tuple[Rollout, ...], Mapping[str, Sighting]]:
            async with broker.platform(self.settings) as (_, js):
                heads = await rollouts.heads(js)
                return tuple(head.rollout for head in heads), await rollouts.sightings(js, self.targets)

        return asyncio.run(read())

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """All rollouts, the newest first."""
        return self._broker[0]

    @property
    def sightings(self) -> Mapping[str, Sighting]:
        """The last report of each target."""
        return self._broker[1]

    def manifest(self, published: Published) -> Manifest:
        """Return a release's manifest."""
        return releases.manifest_of(self.settings, published)

    def examples(self, condition: pl.Expr) -> pl.DataFrame:
        """Return what versions of grid and windows were made of, a row a version, the newest first.

        Columns: recipe, grid_version, windows_version, readings_version, as_of, late, labels, labels_sha256, made_at,
        devices, windows, first_time, last_time.
        """
        keys = ["recipe", "grid_version", "windows_version"]
        made = self.lake.scan("examples")
        chosen = made.filter(condition).select(keys).unique()
        each = made.join(chosen, on=keys, how="semi").group_by(keys)
        of_all = each.agg(
            pl.col("readings_version", "as_of", "late", "labels", "labels_sha256", "made_at").first(),
            pl.col("windows").sum(),
            pl.col("first_time").min(),
            pl.col("last_time").max(),
            devices=pl.len(),
        )
        return of_all.sort("made_at", descending=True).collect()

    def holding(self, version: int) -> int | None:
        """Return the first version of `readings`, from this one on, that examples were made of; it only grows."""
        later = self.lake.scan("examples").filter(pl.col("readings_version") >= version)
        found: int | None = later.select(pl.col("readings_version").min()).collect().item()
        return found

    def devices_of(self, recipe: str, windows_version: int) -> pl.DataFrame:
        """Return table `examples` of one version of the windows: a row a device, those with most windows first."""
        made = pl.col("recipe") == recipe, pl.col("windows_version") == windows_version
        return self.lake.scan("examples").filter(*made).sort("windows", "device", descending=[True, False]).collect()

    def validations(self, runs: Sequence[str]) -> pl.DataFrame:
        """Return the outcome of validations, a row each: run_id, passed, checks, readings version, report_url, at."""
        checks = self.lake.scan("checks").filter(pl.col("run_id").is_in(runs)).group_by("run_id")
        judged = checks.agg(passed=pl.col("passed").sum(), checks=pl.len(), readings=pl.col("table_version").first())
        reports = self.lake.scan("validations").filter(pl.col("run_id").is_in(runs)).group_by("run_id")
        places = reports.agg(pl.col("report_url").first(), at=pl.col("validated_at").max(), devices=pl.len())
        return places.join(judged, on="run_id", how="left").sort("at", descending=True).collect()

    def scored(self, device: str) -> pl.DataFrame:
        """Return which releases have predicted for a device, a row each: release, predictions, first, last."""
        mine = self.lake.scan("predictions").filter(pl.col("device") == device).group_by("release")
        time = pl.col("end_time")
        return mine.agg(predictions=pl.len(), first=time.min(), last=time.max()).sort("last", descending=True).collect()

    def runs(self, recipe: str, tag: str, value: str) -> list[Trained]:
        """Return the candidates' runs of a recipe that bear a tag, the newest first."""
        return registry.runs(self.settings, recipe, {tag: value, ALGORITHM: None}, RUNS)

    def commit(self, table: str, version: int) -> Commit | None:
        """Return what made a version of a table; None where its log does not reach back so far."""
        found = self.lake.commits(table, 1, version)
        return found[0] if found else None
