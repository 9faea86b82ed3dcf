"""Rebuild: a registered version made again from what its run recorded, and held against the graph that it has.

origin, recipe → examples at the table versions → the winning candidate, with the settings found → the same bits?
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
from pydantic import ValidationError

from fieldloop.domain.difference import first_difference
from fieldloop.domain.errors import StoreError
from fieldloop.domain.recipe import Recipe
from fieldloop.stores import registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.registry import ModelVersion
from fieldloop.stores.settings import Settings
from tasks.examples import read
from tasks.fitting import fit
from tasks.materials import prepare
from tasks.origin import ORIGIN, RECIPE, Origin, code, decode, digest, packages


@dataclass(frozen=True)
class Rebuilt:
    """What rebuilding a version showed.

    Attributes:
        version: the registered one.
        origin: what its run recorded.
        graph: SHA-256 of the graph that was made now.
        difference: where it differs first from the version's; None where it does not.
        circumstances: what is not as it was when the version was made, such as a library's version.
    """

    version: ModelVersion
    origin: Origin
    graph: str
    difference: str | None
    circumstances: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether all bits are the same."""
        return self.graph == self.origin.graph and self.difference is None


def rebuild(settings: Settings, version: ModelVersion, say: Callable[[str], None] = lambda _: None) -> Rebuilt:
    """Fit a version's candidate again, at the version's tables, and compare the graphs.

    Args:
        settings: the installation.
        version: the registered version.
        say: is told what is being done.

    Raises:
        StoreError: the version does not say what it was made from, its tables are gone, or its graph is not the one
            that its run recorded.
        TrainingError: the tables cannot be trained from.
    """
    origin, recipe = origin_of_version(settings, version), _recipe(settings, version)
    registered = registry.graph(settings, version)
    if digest(registered) != origin.graph:
        raise StoreError(
            f"{version.label}: expected a graph with SHA-256 {origin.graph}, as its run {version.run_id} recorded, got "
            f"{digest(registered)}: the stored model was changed after training"
        )
    say(f"reads grid/{recipe.name}@{origin.grid} and windows/{recipe.name}@{origin.windows}")
    lake = Lake(settings)
    for table, number in ((f"grid/{recipe.name}", origin.grid), (f"windows/{recipe.name}", origin.windows)):
        lake.require(table, number)
    materials = prepare(recipe, read(lake, recipe, origin.versions))
    candidate = origin.fitted()
    say(f"fits {candidate.algorithm} to {len(materials.train) + len(materials.validation):,} windows")
    made = fit(candidate, materials, origin.seed).graph.SerializeToString()
    differs = (
        None if made == registered else first_difference(onnx.load_from_string(registered), onnx.load_from_string(made))
    )
    return Rebuilt(version, origin, digest(made), differs, _circumstances(settings, origin))


def origin_of_version(settings: Settings, version: ModelVersion) -> Origin:
    """Return what a version's run recorded of its making.

    Raises:
        StoreError: it recorded nothing: it was trained by an older Fieldloop.
    """
    if not registry.holds(settings, version, ORIGIN):
        raise StoreError(
            f"{version.label}: its run {version.run_id} has no {ORIGIN}: it was trained by an older Fieldloop that did "
            "not record what a model is made from; train and register again"
        )
    return decode(registry.artifact(settings, version, ORIGIN), version.run_id)


def _recipe(settings: Settings, version: ModelVersion) -> Recipe:
    """The recipe as it was, to be computed here, wherever it was computed then: the bits are the same."""
    try:
        recipe = Recipe.model_validate_json(registry.artifact(settings, version, RECIPE))
    except ValidationError as exc:
        raise StoreError(
            f"{version.label}: the recipe that its run {version.run_id} kept cannot be read by this Fieldloop; "
            f"check out the commit that `fieldloop model show {version.label}` names: {exc}"
        ) from exc
    return recipe.model_copy(update={"engine": "local"})


def _circumstances(settings: Settings, origin: Origin) -> tuple[str, ...]:
    changed = [f"{name} was {was}, is {now}" for name, was, now in _changed(origin.packages, packages())]
    here = code(settings.root)
    if origin.code != here:
        changed.append(f"Fieldloop's code was at {_commit(origin.code)}, is at {_commit(here)}")
    return tuple(changed)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[tuple[str, str, str]]:
    names = sorted(before.keys() | now.keys())
    return [
        (name, before.get(name, "not there"), now.get(name, "not there"))
        for name in names
        if before.get(name) != now.get(name)
    ]


def _commit(described: str) -> str:
    return f"{described[:12]}{' with changes' if described.endswith('+') else ''}" if described else "no known commit"
