"""What a recipe's grid and windows follow from: the readings that count of devices that passed, profiles, labels."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from expectations.profiles import load_profile
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.profile import Profile
from fieldloop.domain.recipe import Recipe
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from tasks import labels
from tasks.ancestry import Ancestry, Past, Validated
from tasks.labels import Noted


@dataclass(frozen=True)
class Basis:
    """What grid and windows follow from.

    Attributes:
        recipe: the use case.
        version: of table `readings`.
        profiles: of each device that counts.
        until: how far each of them is validated.
        noted: labelled intervals, and where they come from.
        left_out: devices of the recipe that did not pass validation.
        past: the moment as of which readings count, if any.
        counted: what then holds for those that do.
        key: digest of all of this.
    """

    recipe: Recipe
    version: int
    profiles: Mapping[str, Profile]
    until: Mapping[str, Validated]
    noted: Noted
    left_out: tuple[str, ...]
    past: Past | None
    counted: pl.Expr | None
    key: str

    @property
    def ancestry(self) -> Ancestry:
        """What lineage is told of it."""
        names = {device: profile.name for device, profile in self.profiles.items()}
        return Ancestry(self.recipe.name, self.version, names, self.until, self.past, self.noted)

    @property
    def metadata(self) -> dict[str, str]:
        """What the tables' commits say of it."""
        past = self.past.metadata if self.past else {}
        return {"content": self.key, "readings": str(self.version), **past, **self.noted.metadata}


def basis_of(settings: Settings, lake: Lake, recipe: Recipe, past: Past | None) -> Basis:
    """Look up what there is to make windows from.

    Raises:
        DocumentError: recipe and profiles do not fit, or the labels cannot be read.
        TrainingError: no device of the recipe's profiles has passed validation, or there is nothing as of the moment.
    """
    profiles = {name: load_profile(settings.root, name) for name in recipe.profiles}
    enrolled = {name: profile for name, profile in fleet.devices(lake).items() if profile in profiles}
    members = {name: profile for name, profile in enrolled.items() if recipe.devices.takes(name)}
    passed = _passed(lake)
    chosen = sorted(set(members) & passed.keys())
    if not chosen:
        raise TrainingError(
            f"recipe {recipe.name}: no device of profile {', '.join(profiles)} has passed validation "
            f"({len(enrolled)} enrolled, {len(members)} of them taken by the recipe); bring readings in "
            "(flow `acquire` or `collect`) and run the flow `validate` first"
        )
    version = lake.version("readings")
    if version is None:
        raise TrainingError(f"recipe {recipe.name}: table `readings` does not exist; run the flow `acquire` first")
    until = {device: passed[device] for device in chosen}
    noted = labels.read_labels(settings, lake, recipe)
    counted = None if past is None else past.readings(lake)
    found = _counted(lake, version, until, counted)
    if past is not None and not len(found):
        raise TrainingError(_nothing_then(lake, version, recipe, list(until), past))
    key = _content_key(recipe, profiles, found, noted, past)
    of_device = {device: profiles[members[device]] for device in chosen}
    return Basis(
        recipe, version, of_device, until, noted, tuple(sorted(set(members) - passed.keys())), past, counted, key
    )


def _passed(lake: Lake) -> dict[str, Validated]:
    """Return the devices whose newest validation they passed, and how far it looked."""
    newest = lake.scan("validations").sort("validated_at").group_by("device").last().filter("passed")
    rows = newest.select("device", "last_sequence", "last_replay", "run_id").collect().iter_rows()
    return {device: Validated(*further) for device, *further in rows}


def readings_of(lake: Lake, version: int, counted: pl.Expr | None) -> pl.LazyFrame:
    """Return the readings that count; all where no condition is given."""
    readings = lake.scan("readings", version)
    return readings if counted is None else readings.filter(counted)


def _counted(
    lake: Lake, version: int, until: Mapping[str, Validated], counted: pl.Expr | None
) -> list[tuple[str, int, int, int]]:
    """Return of each device with readings that count: how many, the last position, and the last replay."""
    schema = {"device": pl.String, "last": pl.Int64, "replayed": pl.Int64}
    limits = pl.LazyFrame([(name, each.sequence, each.replay) for name, each in until.items()], schema, orient="row")
    validated = readings_of(lake, version, counted).select("device", "sequence", "replay").join(limits, on="device")
    within = validated.filter(pl.col("sequence") <= pl.col("last"), pl.col("replay") <= pl.col("replayed"))
    newest = pl.len(), pl.col("sequence").max(), pl.col("replay").max()
    return sorted(within.group_by("device").agg(newest).collect(engine="streaming").rows())


def _content_key(
    recipe: Recipe,
    profiles: Mapping[str, Profile],
    found: Sequence[tuple[str, int, int, int]],
    noted: Noted,
    past: Past | None,
) -> str:
    """Return a digest of everything that the tables follow from; unlike versions, re-sent readings do not change it."""
    known = (recipe.digest, repr(sorted(profiles.items())), found, labels.fingerprint(noted.intervals))
    described = known if past is None else (*known, past.metadata)
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _nothing_then(lake: Lake, version: int, recipe: Recipe, devices: list[str], past: Past) -> str:
    column = "event_time" if past.late else "arrival_time"
    mine = lake.scan("readings", version).filter(pl.col("device").is_in(devices))
    first = mine.select(pl.col(column).min()).collect().item()
    what = "happened" if past.late else "arrived"
    return (
        f"recipe {recipe.name}: no reading of its {len(devices)} devices had {what} by {past.moment}; the first {what} "
        f"at {first}: take a later moment{'' if past.late else ', or include what arrived late'}"
    )
