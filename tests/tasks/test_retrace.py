"""Training sets as of a past moment, with and without what arrived later, and what `maintain` leaves of them."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from fieldloop.domain.errors import StoreError, TrainingError
from fieldloop.domain.recipe import load_recipe
from fieldloop.domain.windows import OUT_OF_STREAM
from fieldloop.stores import fleet, registry
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.ancestry import Past
from tasks.maintain import clear_examples
from tasks.preprocess import Preprocessed, preprocess
from tasks.register import enter, prove
from tasks.results import TrainResult
from tasks.retrace import compare, describe
from tasks.train import begin, finish, train_candidate
from tests.tasks.farm import DEVICES, FarmSettings, farm, tables

pytestmark = [
    # mlflow.pyfunc warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

NAME = "tiny-retrace"
SEED = 7
MOMENT = datetime(2015, 1, 15, tzinfo=UTC)
LATE_BY = timedelta(days=40)
LATE = (pl.col("device") == NAME + DEVICES[1]) & (pl.col("step_time").dt.ordinal_day() == 10)  # a day of January


@pytest.fixture(scope="module")
def settings(platform: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's readings as files brought them; one device's day came forty days late."""
    made = farm(platform, tmp_path_factory.mktemp("farm"), NAME)
    path = made.root / "recipes" / f"{NAME}.yaml"
    path.write_text(path.read_text() + f"devices: {{include: [{NAME}*]}}\n")
    lake, recipe = Lake(made), load_recipe(made.root, NAME)
    grid = tables(recipe)[0].with_columns(device=pl.lit(NAME) + pl.col("device"))
    rows = grid.unpivot(index=["device", "step_time"], variable_name="metric").drop_nans("value")
    arrival = pl.when(LATE).then(pl.col("step_time") + LATE_BY).otherwise(pl.col("step_time"))
    columns = {
        "event_time": pl.col("step_time"),
        "arrival_time": arrival,
        "sequence": pl.lit(OUT_OF_STREAM),
        "replay": pl.lit(0),
        "year": pl.col("step_time").dt.year(),
    }
    named = rows.with_columns(**columns)
    lake.append("readings", named.select(pl.col(name).cast(kind) for name, kind in SCHEMAS["readings"].items()))
    names = grid["device"].unique(maintain_order=True).to_list()
    fleet.add_devices(lake, names, "senvion-mm82")
    verdicts = [(f"run-{NAME}", name, True, 2**40, 0, "", "", MOMENT) for name in names]
    lake.append("validations", pl.DataFrame(verdicts, schema=SCHEMAS["validations"], orient="row"))
    return made


@pytest.fixture(scope="module")
def sides(settings: FarmSettings) -> list[tuple[Preprocessed, TrainResult]]:
    """Tables and training with what arrived late, and without."""
    found = []
    for late in (True, False):
        made = preprocess(settings, NAME, Past(MOMENT, late))
        training = begin(settings, NAME, ["ridge"], made.grid_version, made.windows_version, SEED)
        found.append((made, finish(settings, training, [train_candidate(settings, training, "ridge", SEED)])))
    return found


def test_nothing_later_is_in(settings: FarmSettings, sides: list[tuple[Preprocessed, TrainResult]]) -> None:
    """No step begins after the moment; the late day is there, or not; the run says as of when it was trained."""
    lake, (late, known) = Lake(settings), (each[0] for each in sides)
    for made in (late, known):
        steps = lake.scan(f"grid/{NAME}", made.grid_version).select("device", "step_time").collect()
        assert steps["step_time"].max() == MOMENT - timedelta(minutes=10)
        day = steps.filter(LATE)
        assert len(day) == (144 if made is late else 0)
    assert late.windows > known.windows
    tags = registry.run_tags(settings, sides[1][1].best.run_id)
    assert (tags["fieldloop.as_of"], tags["fieldloop.late"]) == (MOMENT.isoformat(), "out")


def test_difference_is_shown(settings: FarmSettings, sides: list[tuple[Preprocessed, TrainResult]]) -> None:
    """Readings, steps and windows that the late day made, and both models on the same windows."""
    result = compare(settings, MOMENT, sides[0], sides[1])
    assert result.steps_changed == 144
    assert result.windows_changed >= 144  # and those that reach into the day
    assert 144 * 3 < result.late.readings - result.known.readings <= 144 * 4
    assert set(result.late.together) == set(result.known.together)
    assert result.late.together == pytest.approx(result.late.metrics)
    assert result.known.together != pytest.approx(result.known.metrics)
    shown = describe(result)
    assert "change 144 grid steps" in shown
    assert "| mae, the same windows |" in shown


def test_made_once_and_never_by_default(settings: FarmSettings, sides: list[tuple[Preprocessed, TrainResult]]) -> None:
    """The same moment gives the same tables; a training that names none takes those of all that there is."""
    again = preprocess(settings, NAME, Past(MOMENT, late=True))
    assert again.reused
    assert again.grid_version == sides[0][0].grid_version
    whole = preprocess(settings, NAME)
    preprocess(settings, NAME, Past(MOMENT - timedelta(days=1), late=True))
    assert begin(settings, NAME, ["ridge"], None, None, SEED).versions.grid == whole.grid_version
    assert preprocess(settings, NAME).reused


def test_nothing_was_known_then(settings: FarmSettings) -> None:
    """It is said when the first reading came, and what to do."""
    before = datetime(2014, 1, 1, tzinfo=UTC)
    with pytest.raises(TrainingError, match=r"had arrived by 2014-01-01 .*; the first arrived at 2014-12-01 .* late"):
        preprocess(settings, NAME, Past(before, late=False))
    with pytest.raises(StoreError, match="expected a moment with a time zone"):
        preprocess(settings, NAME, Past(before.replace(tzinfo=None), late=False))


def test_maintenance_keeps_what_models_were_made_from(
    settings: FarmSettings, sides: list[tuple[Preprocessed, TrainResult]]
) -> None:
    """Old versions of grid and windows go, but for those that a registered model names."""
    (late, trained), (known, _) = sides
    enter(settings, prove(settings, NAME, trained.best.run_id))
    preprocess(settings, NAME)
    done = clear_examples(settings, NAME, timedelta(0))
    assert [each.table for each in done] == [f"grid/{NAME}", f"windows/{NAME}"]
    assert all(each.deleted for each in done)
    lake = Lake(settings)
    lake.require(f"grid/{NAME}", late.grid_version)
    lake.require(f"windows/{NAME}", late.windows_version)
    with pytest.raises(StoreError, match="can no longer be read"):
        lake.require(f"grid/{NAME}", known.grid_version)
    assert preprocess(settings, NAME).reused
    assert not preprocess(settings, NAME, Past(MOMENT, late=False)).reused
