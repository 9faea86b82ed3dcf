"""Lineage by query, both ways: what a thing came from, and what came of it, as far as it is recorded.

device, readings → examples (grid, windows) → run → model version → release → rollout, targets that run it
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import msgspec
import polars as pl

from fieldloop.domain.errors import StoreError
from fieldloop.domain.lineage import Lineage, Node, bounded
from fieldloop.domain.recipe.devices import GROUP
from fieldloop.domain.release import MANIFEST, Manifest, Variant, release_folder
from fieldloop.domain.rollout import Sighting
from fieldloop.domain.rollout.record import Rollout
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.releases import Published
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.records import Records
from tasks.tags import ALGORITHM, AS_OF, CODE, GRAPH_DIGEST, GRID_VERSION, RECIPE_DIGEST, RECIPE_NAME, WINDOWS_VERSION

SHOWN: Final = 20  # children of a node, at most
KINDS: Final = (
    "a release (its digest, or at least the first 6 characters), a model version (turbine-power/3, "
    "turbine-power@champion), an MLflow run (its id), a device or target (its name), a table version "
    "(readings@12, grid/turbine-power@3), or labels (their file as the recipe names it, its SHA-256, or faults@3)"
)
_TABLE: Final = re.compile(r"(?:s3://lake/)?((?:grid|windows)/[a-z0-9][a-z0-9_-]*|[a-z]+)@(\d+)")
_VERSION: Final = re.compile(r"(?:models:/)?[A-Za-z0-9][A-Za-z0-9_-]*(?:/\d+|@[a-z]+)")
_DIGEST: Final = re.compile(r"[0-9a-f]{6,64}")
_RUN: Final = re.compile(r"[0-9a-f]{32}")

_Found = Callable[[], Lineage]


def lineage(settings: Settings, text: str, shown: int = SHOWN) -> Lineage:
    """Return what is recorded of a thing, in both directions.

    Args:
        settings: the installation.
        text: the thing, as people name it, see `KINDS`.
        shown: children of a node, at most.

    Raises:
        StoreError: nothing bears this name, or several things do; or a store does not answer.
    """
    trees = _Trees(Records(settings, Lake(settings)), shown)
    found = dict(_meant(trees, text))
    if not found:
        raise StoreError(f"nothing recorded is called {text!r}; expected {KINDS}{_close(trees.records, text)}")
    if len(found) > 1:
        raise StoreError(f"{text!r} could be any of: {', '.join(found)}; say more of it")
    whole = next(iter(found.values()))()
    more = max(0, len(whole.origins) - shown), max(0, len(whole.uses) - shown)
    return Lineage(whole.subject, whole.origins[:shown], whole.uses[:shown], *more)


def _meant(trees: "_Trees", text: str) -> Iterator[tuple[str, _Found]]:
    """All things that a text can stand for, each with what answers for it."""
    records = trees.records
    table = _TABLE.fullmatch(text)
    if table and (table[1] in SCHEMAS or "/" in table[1]):
        yield f"table version {text}", partial(trees.table, table[1], int(table[2]))
    elif _VERSION.fullmatch(text):
        version = registry.named(records.settings, text)
        yield f"model version {version.label}", partial(trees.version, version)
    if _DIGEST.fullmatch(text):
        for each in (release for release in records.releases if release.digest.startswith(text)):
            yield f"release {each.digest}", partial(trees.release, each)
    if _RUN.fullmatch(text) and registry.has_run(records.settings, text):
        yield f"run {text}", partial(trees.run, text)
    if len(records.examples(_labels(text))):
        yield f"labels {text}", partial(trees.labels, text)
    if text in records.devices:
        yield f"device {text}", partial(trees.device, text)
    if text in records.targets:
        yield f"target {text}", partial(trees.target, text)


def _labels(text: str) -> pl.Expr:
    """Which rows of table `examples` tell targets by these labels: by name, or by the first digits of a digest."""
    named = pl.col("labels") == text
    return named | pl.col("labels_sha256").str.starts_with(text) if _DIGEST.fullmatch(text) else named


def _close(records: Records, text: str) -> str:
    """What might be meant."""
    numbers = [version.label for version in records.versions if version.name == text]
    return f"; model {text} has the versions {', '.join(numbers[:SHOWN])}" if numbers else ""


class _Trees:
    """The things as trees, from the records."""

    def __init__(self, records: Records, shown: int) -> None:
        self.records = records
        self._shown = shown

    def table(self, table: str, version: int) -> Lineage:
        """A version of a table."""
        commit = self.records.commit(table, version)
        if commit is None:
            raise StoreError(f"table {table!r} does not exist")
        subject = Node("table version", f"{table}@{version}", {"written": _moment(commit.at), **dict(commit.metadata)})
        kind, _, recipe = table.partition("/")
        if recipe:
            made = (pl.col("recipe") == recipe) & (pl.col(f"{kind}_version") == version)
            rows = self.records.examples(made).rows(named=True)
            return Lineage(subject, tuple(map(self._examples_origins, rows)), tuple(map(self._examples_uses, rows)))
        if table != "readings":
            return Lineage(subject, (), ())
        rows = self.records.examples(pl.col("readings_version") == self.records.holding(version)).rows(named=True)
        judged = self.records.lake.scan("checks").filter(pl.col("table_version") == version)
        runs = judged.select(pl.col("run_id").unique()).collect()["run_id"].to_list()
        uses = (*self._validations(runs), *map(self._examples_uses, rows))
        return Lineage(subject, (), uses)

    def labels(self, text: str) -> Lineage:
        """Labels of a file or of a version of a table: what was learnt from them."""
        rows = self.records.examples(_labels(text)).rows(named=True)
        digests = dict.fromkeys(row["labels_sha256"] for row in rows)
        names = dict.fromkeys(row["labels"] for row in rows)
        subject = Node("labels", ", ".join(names), {"sha256": ", ".join(digests)})
        return Lineage(subject, (), tuple(map(self._examples_uses, rows)))

    def device(self, name: str) -> Lineage:
        """A device: what was judged of it, which releases have predicted for it, and what was learnt from it."""
        mine = pl.col("device") == name
        span = self.records.lake.scan("readings").filter(mine)
        counted = span.select(n=pl.len(), first=pl.col("event_time").min(), last=pl.col("event_time").max())
        readings = counted.collect(engine="streaming").row(0, named=True)
        facts = {"profile": self.records.devices[name], "readings": f"{readings['n']:,}", **_span(readings)}
        judged = self.records.lake.scan("validations").filter(mine).sort("validated_at", descending=True)
        runs = judged.select("run_id").head(self._shown).collect()["run_id"].to_list()
        scored = [
            Node("release", row["release"], {"predictions for it": f"{row['predictions']:,}", **_span(row)})
            for row in self.records.scored(name).rows(named=True)
        ]
        learnt = map(self._examples_uses, self.records.examples(mine).head(self._shown).rows(named=True))
        return Lineage(Node("device", name, facts), tuple(self._validations(runs)), (*scored, *learnt))

    def run(self, run_id: str) -> Lineage:
        """A candidate's run."""
        tags = registry.run_tags(self.records.settings, run_id)
        if WINDOWS_VERSION not in tags:
            above = tags.get("mlflow.parentRunId", "the run of its candidate")
            raise StoreError(
                f"MLflow run {run_id} is no candidate's but a trial, or not of a training: ask for {above}"
            )
        return Lineage(_run(run_id, tags), self._run_origins(tags), self._run_uses(run_id))

    def version(self, version: ModelVersion) -> Lineage:
        """A registered version."""
        return Lineage(_version(version), (self._run_behind(version.run_id),), self._version_uses(version))

    def release(self, release: Published, labels: Collection[str] | None = None) -> Lineage:
        """A release; with labels, as it is for a target that has them."""
        manifest = self.records.manifest(release)
        models = manifest.variants or (manifest,)
        if manifest.variants and labels is not None:
            models = tuple(each for each in manifest.variants if set(each.labels) <= set(labels)) or models
        graphs = {
            f"graph of {each.name}" if isinstance(each, Variant) else "graph": each.graph.sha256 for each in models
        }
        subject = Node("release", release.digest, {**graphs, "created": manifest.created_at})
        return Lineage(subject, tuple(map(self._model_behind, models)), self._release_uses(release))

    def _model_behind(self, model: Manifest | Variant) -> Node:
        """The version that a graph is of; one that is gone from MLflow is told of by the manifest still."""
        label = f"{model.model}/{model.version}"
        found = next((each for each in self.records.versions if each.label == label), None)
        if found is None:
            return Node("run", model.run_id, dict(model.lineage))
        return bounded(_version(found), (self._run_behind(found.run_id),), 1)

    def target(self, name: str) -> Lineage:
        """An edge target: what it runs, and where that comes from."""
        sighting = self.records.sightings.get(name)
        running = sighting.report.running if sighting else None
        subject = Node("target", name, {"runs": running.release if running else "nothing that it has reported"})
        if running is None:
            return Lineage(subject, (), ())
        found = [each for each in self.records.releases if each.digest == running.release]
        below = [self.release(each, self.records.targets[name]) for each in found]
        return Lineage(subject, tuple(bounded(each.subject, each.origins, self._shown) for each in below), ())

    def _run_behind(self, run_id: str) -> Node:
        tags = registry.run_tags(self.records.settings, run_id)
        return bounded(_run(run_id, tags), self._run_origins(tags), self._shown)

    def _run_origins(self, tags: Mapping[str, str]) -> tuple[Node, ...]:
        """The recipe and the examples of a run."""
        recipe, windows = tags[RECIPE_NAME], int(tags[WINDOWS_VERSION])
        document = Node("recipe", recipe, {"digest": tags[RECIPE_DIGEST]})
        made = (pl.col("recipe") == recipe) & (pl.col("windows_version") == windows)
        rows = self.records.examples(made).rows(named=True)
        if rows:
            return document, *map(self._examples_origins, rows)
        tables = {"grid": f"grid/{recipe}@{tags[GRID_VERSION]}", "windows": f"windows/{recipe}@{windows}"}
        return document, Node("examples", tables["windows"], {**tables, "made of": "not recorded"})

    def _examples_origins(self, row: Mapping[str, Any]) -> Node:
        """Readings, labels, validations and devices that examples were made of."""
        members = self.records.devices_of(row["recipe"], row["windows_version"])
        devices = [
            Node("device", each["device"], {"windows": f"{each['windows']:,}", **_windows_span(each)})
            for each in members.head(self._shown).rows(named=True)
        ]
        commit = self.records.commit("readings", row["readings_version"])
        facts = {} if commit is None else {"written": _moment(commit.at)}
        readings = Node("table version", f"readings@{row['readings_version']}", facts)
        noted = [Node("labels", row["labels"], {"sha256": row["labels_sha256"]})] if row["labels"] else []
        validations = self._validations(members["validation"].unique().to_list())
        others = len(members) - len(devices)
        children = (readings, *noted, *validations, *devices)
        return msgspec.structs.replace(_examples(row), children=children, more=others)

    def _examples_uses(self, row: Mapping[str, Any]) -> Node:
        trained = self.records.runs(row["recipe"], WINDOWS_VERSION, str(row["windows_version"]))
        fitting = [each for each in trained if each.tags.get(GRID_VERSION) == str(row["grid_version"])]
        runs = [bounded(_run(each.run_id, each.tags), self._run_uses(each.run_id), self._shown) for each in fitting]
        return bounded(_examples(row), runs, self._shown)

    def _run_uses(self, run_id: str) -> tuple[Node, ...]:
        mine = [each for each in self.records.versions if each.run_id == run_id]
        return tuple(bounded(_version(each), self._version_uses(each), self._shown) for each in mine)

    def _version_uses(self, version: ModelVersion) -> tuple[Node, ...]:
        """The releases that hold it; of a group's model, those of the whole recipe, with the group's targets."""
        whole = version.name.partition(GROUP)[0]
        found: list[tuple[Published, tuple[str, ...]]] = []
        for release in self.records.releases:
            if release.manifest == f"{release_folder(version.name, version.version)}/{MANIFEST}":
                found.append((release, ()))
            elif whole != version.name and release.manifest.startswith(f"releases/{whole}/"):
                variants = self.records.manifest(release).variants
                mine = [each for each in variants if (each.model, each.version) == (version.name, version.version)]
                found += [(release, each.labels) for each in mine]
        return tuple(
            bounded(Node("release", release.digest), self._release_uses(release, labels), self._shown)
            for release, labels in found
        )

    def _release_uses(self, release: Published, labels: Collection[str] = ()) -> tuple[Node, ...]:
        """Its rollouts, and the targets with these labels that say that they run it now."""
        rolled = [_rollout(each) for each in self.records.rollouts if each.release == release.digest]
        mine = [name for name, own in self.records.targets.items() if set(labels) <= set(own)]
        seen = [(name, self.records.sightings[name]) for name in sorted(mine) if name in self.records.sightings]
        return *rolled, *(_target(name, each) for name, each in seen if _running(each) == release.digest)

    def _validations(self, runs: list[str]) -> Iterator[Node]:
        for row in self.records.validations(runs).head(self._shown).rows(named=True):
            checks = {} if row["checks"] is None else {"passed": f"{row['passed']} of {row['checks']} checks"}
            read = {} if row["readings"] is None else {"of": f"readings@{row['readings']}"}
            report = {"report": row["report_url"]} if row["report_url"] else {}
            yield Node("validation", row["run_id"], {**checks, **read, "at": _moment(row["at"]), **report})


def _version(version: ModelVersion) -> Node:
    alias = {"alias": ", ".join(version.aliases)} if version.aliases else {}
    return Node("model version", version.label, {**alias, "registered": _us(version.created_ms * 1000)})


def _run(run_id: str, tags: Mapping[str, str]) -> Node:
    wanted = {"algorithm": ALGORITHM, "code": CODE, "graph": GRAPH_DIGEST, "as of": AS_OF}
    return Node("run", run_id, {name: tags[tag] for name, tag in wanted.items() if tags.get(tag)})


def _rollout(rollout: Rollout) -> Node:
    began = _us(rollout.issued_us)
    return Node("rollout", rollout.name, {"phase": rollout.phase, "targets": f"{rollout.targets:,}", "began": began})


def _target(name: str, sighting: Sighting) -> Node:
    """A target that runs something."""
    running = sighting.report.running
    proved = "yes" if running and running.proof.passed else "no"
    return Node("target", name, {"proved": proved, "reported": _us(sighting.seen_us)})


def _running(sighting: Sighting) -> str | None:
    """Digest of what a target says that it runs."""
    running = sighting.report.running
    return None if running is None else running.release


def _examples(row: Mapping[str, Any]) -> Node:
    recipe = row["recipe"]
    facts = {"grid": f"grid/{recipe}@{row['grid_version']}", "of": f"readings@{row['readings_version']}"}
    facts |= {"devices": f"{row['devices']:,}", "windows": f"{row['windows']:,}", **_windows_span(row)}
    if row["as_of"] is not None:
        facts["as of"] = f"{_moment(row['as_of'])}, what came late {'in' if row['late'] else 'out'}"
    return Node("examples", f"windows/{recipe}@{row['windows_version']}", facts)


def _windows_span(row: Mapping[str, Any]) -> dict[str, str]:
    return _span({"first": row["first_time"], "last": row["last_time"]})


def _span(row: Mapping[str, Any]) -> dict[str, str]:
    return {} if row["first"] is None else {"from": _moment(row["first"]), "to": _moment(row["last"])}


def _us(us: int) -> str:
    return _moment(datetime.fromtimestamp(us / 1e6, UTC))


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
