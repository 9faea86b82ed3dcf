"""The same recipe in process and on a real Dask cluster of two workers: the same tables, metrics and graph."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.errors import ServiceError
from fieldloop.domain.recipe import Recipe, load_recipe
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS, TIME
from tasks.cluster import connected, in_order
from tasks.examples import Versions, read
from tasks.fitting import Fitted, fit
from tasks.grids import LakeGrids, look_up
from tasks.materials import prepare
from tasks.matrix import _of_part, _parts
from tasks.preprocess import preprocess
from tasks.train import begin
from tests.tasks.farm import BEGIN, FarmSettings, farm, tables

LOCAL, SPREAD = "tiny-here", "tiny-there"


@pytest.fixture(scope="module")
def here(data_plane: Settings, tmp_path_factory: pytest.TempPathFactory) -> FarmSettings:
    """The farm's readings in a lake, and its recipe twice: as it is, and with `engine: dask`."""
    settings = farm(data_plane, tmp_path_factory.mktemp("farm"), LOCAL)
    text = (settings.root / "recipes" / f"{LOCAL}.yaml").read_text().replace(LOCAL, SPREAD)
    (settings.root / "recipes" / f"{SPREAD}.yaml").write_text(text.replace("promotion:", "engine: dask\npromotion:"))
    lake, recipe = Lake(settings), load_recipe(settings.root, LOCAL)
    readings = _readings(recipe)
    devices = readings["device"].unique().to_list()
    lake.append("readings", readings)
    fleet.add_devices(lake, devices, recipe.profiles[0])
    rows = [("run", device, True, 2**40, 0, "", "", BEGIN) for device in devices]
    lake.append("validations", pl.DataFrame(rows, schema=SCHEMAS["validations"], orient="row"))
    return settings


@pytest.fixture(scope="module")
def there(here: FarmSettings) -> Iterator[FarmSettings]:
    """The same settings with a cluster of two worker processes, which read the lake by their own environment."""
    from distributed import LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.environment().items():
            patch.setenv(name, value)
        with LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster:
            yield here.model_copy(update={"dask_url": cluster.scheduler_address})


def _readings(recipe: Recipe) -> pl.DataFrame:
    """The farm's grid as readings, one a step and channel."""
    grid, _ = tables(recipe)
    long = grid.unpivot(index=["device", "step_time"], variable_name="metric", value_name="value")
    rows = long.drop_nans("value").sort("device", "step_time", "metric").rename({"step_time": "event_time"})
    return rows.with_columns(
        arrival_time=pl.col("event_time").cast(TIME),
        sequence=pl.int_range(1, pl.len() + 1),
        replay=pl.lit(0),
        year=pl.col("event_time").dt.year(),
    ).select(pl.col(name).cast(kind) for name, kind in SCHEMAS["readings"].items())


def _learnt(settings: FarmSettings, name: str) -> tuple[tuple[pl.DataFrame, pl.DataFrame], Fitted]:
    """Preprocess, and fit the first candidate."""
    made = preprocess(settings, name)
    lake, recipe = Lake(settings), load_recipe(settings.root, name)
    frames = lake.scan(f"grid/{name}").collect(), lake.scan(f"windows/{name}").collect()
    found = read(lake, recipe, Versions(made.grid_version, made.windows_version))
    return frames, fit(recipe.candidates[0], prepare(recipe, found), seed=7)


def test_a_cluster_gives_the_same_graph(there: FarmSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grid, index, features, metrics, predictions and graph are the same to the last bit, a device a part."""
    monkeypatch.setattr("tasks.matrix._PART_WINDOWS", 100)
    tables_here, alone = _learnt(there, LOCAL)
    tables_there, spread = _learnt(there, SPREAD)
    for mine, theirs in zip(tables_here, tables_there, strict=True):
        assert mine.equals(theirs)
    assert spread.recipe.engine == "dask"
    np.testing.assert_array_equal(spread.materials.train_features, alone.materials.train_features)
    assert spread.validation == alone.validation
    np.testing.assert_array_equal(spread.predicted, alone.predicted)
    assert spread.graph.SerializeToString() == alone.graph.SerializeToString()


def test_what_a_worker_raises_comes_out(there: FarmSettings) -> None:
    """A graph that no runtime on a worker can load fails the call that sent it."""
    lake, recipe = Lake(there), load_recipe(there.root, SPREAD)
    made = preprocess(there, SPREAD)
    found = read(lake, recipe, Versions(made.grid_version, made.windows_version))
    grids = LakeGrids(lake, look_up(lake, recipe, made.grid_version, found.devices))
    with connected(there, recipe) as client:
        assert client is not None
        answers = in_order(client, _of_part, _parts(found, grids, np.arange(9), b"no graph"))
        with pytest.raises(Exception, match="INVALID_PROTOBUF"):
            next(answers)


def test_a_cluster_that_is_not_there(here: FarmSettings) -> None:
    """Without an address, or where nobody answers, training says so before it begins, and what to do."""
    with pytest.raises(ServiceError, match=r"says `engine: dask`.* FIELDLOOP_DASK_URL"):
        begin(here, SPREAD, [], None, None, 7)
    nowhere = here.model_copy(update={"dask_url": "tcp://127.0.0.1:9"})
    with pytest.raises(ServiceError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        begin(nowhere, SPREAD, [], None, None, 7)
