"""From readings to grid and windows, and predictions held against them."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from expectations.profiles import load_profile
from fieldloop.domain.errors import TrainingError
from fieldloop.domain.harmonize import harmonize
from fieldloop.domain.predictions import pack
from fieldloop.domain.readings import Messages
from fieldloop.domain.recipe import load_recipe
from fieldloop.domain.stream import WindowStream
from fieldloop.domain.windows import Windows, window_hash
from fieldloop.stores import fleet
from fieldloop.stores.lake import Lake
from fieldloop.stores.settings import Settings
from fieldloop.stores.tables import SCHEMAS
from tasks.acquire import acquire
from tasks.check import check
from tasks.monitor import collect, compare
from tasks.preprocess import preprocess
from tests.domain.live import pushed

RECIPE = "turbine-power"
PROFILE = "senvion-mm82"
STEP = timedelta(minutes=10)
NEW_YEAR = datetime(2015, 1, 1, tzinfo=UTC)

Publish = Callable[[Sequence[tuple[str, bytes]]], None]


def payload(device: str, first: datetime, steps: int, seed: int) -> bytes:
    """One message with records of every channel, ten minutes apart."""
    noise = np.random.default_rng(seed)
    channels = [channel.field for channel in load_profile(Settings().root, PROFILE).channels]
    records = [
        {"Wind_turbine_name": device, "Date_time": (first + step * STEP).isoformat()}
        | {channel: round(float(noise.uniform(0, 10)), 2) for channel in channels}
        for step in range(steps)
    ]
    return json.dumps(records).encode()


def validate(lake: Lake, device: str, passed: bool, until: int = 1_000_000) -> None:
    """Enter a verdict on the readings up to a position, as the flow *validate* does."""
    row = (f"run-{datetime.now(UTC)}", device, passed, until, 0, "", "", datetime.now(UTC))
    lake.append("validations", pl.DataFrame([row], schema=SCHEMAS["validations"], orient="row"))


@pytest.fixture(scope="module")
def sent(data_plane: Settings, publish: Publish) -> dict[str, list[bytes]]:
    """Two devices' messages across New Year, in the lake; one of them with an hour that came too late."""
    first = NEW_YEAR - timedelta(hours=12)
    messages = {
        device: [payload(device, first + hour * timedelta(hours=1), 6, seed=hour) for hour in range(24)]
        for device in ("W1", "W2")
    }
    messages["W2"].append(messages["W2"].pop(3))
    fleet.add_devices(Lake(data_plane), list(messages), PROFILE)
    publish([(f"devices.{device}.readings", one) for device, every in messages.items() for one in every])
    acquire(data_plane)
    return messages


def test_nothing_is_preprocessed_before_validation(data_plane: Settings, sent: dict[str, list[bytes]]) -> None:
    """Without a device that passed, the error names the flow to run."""
    with pytest.raises(TrainingError, match=r"2 enrolled.*flow `validate` first"):
        preprocess(data_plane, RECIPE)


def test_grid_and_windows_are_versioned_and_made_once(data_plane: Settings, sent: dict[str, list[bytes]]) -> None:
    """A device that did not pass is left out; a second run, even after re-sent readings, makes nothing new."""
    lake = Lake(data_plane)
    validate(lake, "W1", passed=True, until=5)
    partly = preprocess(data_plane, RECIPE)
    validate(lake, "W1", passed=True)
    validate(lake, "W2", passed=False)
    first = preprocess(data_plane, RECIPE)
    assert (first.devices, first.left_out, first.reused) == (("W1",), ("W2",), False)
    told = [finding.text for finding in check(data_plane, RECIPE).findings]
    assert any(text.startswith("1 of 2 devices did not pass validation and are left out (W2); W2: ") for text in told)
    assert partly.steps == 5 * 6 - 1 < first.steps  # validated up to the fifth message, whose last step is open
    again = preprocess(data_plane, RECIPE)
    assert again.reused
    assert (again.grid_version, again.windows_version) == (first.grid_version, first.windows_version)

    validate(lake, "W2", passed=True)
    both = preprocess(data_plane, RECIPE)
    assert both.devices == ("W1", "W2")
    assert both.grid_version == first.grid_version + 1
    windows = lake.scan(f"windows/{RECIPE}").filter(pl.col("device") == "W1").sort("end_time").collect()
    length = load_recipe(data_plane.root, RECIPE).window.length
    ends = windows["end_time"].to_list()
    assert ends == [NEW_YEAR - timedelta(hours=12) + STEP * step for step in range(length, 24 * 6 - 1)]


def test_no_window_reaches_across_the_split(data_plane: Settings, sent: dict[str, list[bytes]]) -> None:
    """Windows that choose end before New Year, windows that test begin at it, those between parts serve none."""
    recipe = load_recipe(data_plane.root, RECIPE)
    windows = Lake(data_plane).scan(f"windows/{RECIPE}").collect()
    ends = {split: rows["end_time"] for (split,), rows in windows.group_by("split")}
    assert ends["train"].max() < ends["validation"].min()
    assert ends["validation"].max() == NEW_YEAR - STEP
    assert ends["test"].min() == NEW_YEAR + STEP * (recipe.window.length - 1)
    assert len(ends[""]) == 2 * 2 * (recipe.window.length - 1)


def test_late_hour_is_left_out_as_at_the_edge(data_plane: Settings, sent: dict[str, list[bytes]]) -> None:
    """The hour that came after its steps were closed is in `readings`, and on no grid."""
    first = NEW_YEAR - timedelta(hours=9)
    hour = pl.col("event_time").is_between(first, first + timedelta(hours=1), closed="left")
    device = pl.col("device") == "W2"
    lake = Lake(data_plane)
    assert len(lake.scan("readings").filter(device, hour).collect()) == 6 * 7
    on_grid = pl.col("step_time").is_between(first, first + timedelta(hours=1), closed="left")
    assert len(lake.scan(f"grid/{RECIPE}").filter(device, on_grid).collect()) == 0


def _edge_windows(settings: Settings, device: str, payloads: list[bytes]) -> Windows:
    """What an agent cuts that hears the messages one by one."""
    profile = load_profile(settings.root, PROFILE)
    spec = load_recipe(settings.root, RECIPE).window_spec(profile)
    stream, codes, parts = WindowStream(spec), spec.channel_codes(profile), []
    for position, one in enumerate(payloads):
        arrival = np.array([2**60], dtype=np.int64)
        readings, _ = harmonize(profile, Messages([device], arrival, np.array([position]), [one]))
        parts.append(pushed(stream, spec, codes[readings.metric], readings.event_us, readings.value, readings.message))
    return Windows(np.concatenate([p.end_us for p in parts]), np.concatenate([p.values for p in parts]))


def test_predictions_are_collected_once_and_held_against_the_lake(
    data_plane: Settings, publish: Publish, sent: dict[str, list[bytes]]
) -> None:
    """Windows cut from the messages are bit for bit the lake's; repeated and broken messages change nothing."""
    bodies = {}
    for device, payloads in sent.items():
        windows = _edge_windows(data_plane, device, payloads)
        values = np.full(len(windows.end_us), 7, dtype=np.float32)
        bodies[device] = pack(
            "gw", "digest", [(device, len(values))], windows.end_us, values, window_hash(windows.values)
        )
    stranger = pack("other", "digest", [("W1", 1)], np.array([0]), np.array([0], "f4"), np.array([0], "u8"))
    never = pack("gw", "digest", [("W1", 1)], np.array([2**62]), np.array([0], "f4"), np.array([0], "u8"))
    publish([("predictions.gw", body) for body in (*bodies.values(), bodies["W1"], b"nonsense", stranger, never)])
    collected = collect(data_plane)
    assert collect(data_plane).predictions == 0
    monitored = compare(data_plane, RECIPE, collected)
    assert collected.predictions == monitored.predictions > 200
    assert collected.quarantined == 3
    assert collected.duplicates == monitored.scores[0].predictions
    assert monitored.identical == monitored.compared == monitored.predictions
    truth = Lake(data_plane).scan(f"windows/{RECIPE}").select(mae=(7 - pl.col("target")).abs().mean()).collect()
    assert monitored.mae == pytest.approx(truth.item(), rel=1e-6)


def test_a_window_that_differs_by_one_bit_is_seen(
    data_plane: Settings, publish: Publish, sent: dict[str, list[bytes]]
) -> None:
    """A release whose windows are not the lake's is found out."""
    windows = _edge_windows(data_plane, "W1", sent["W1"])
    wrong = windows.values.copy()
    wrong[0, 0, 0] = np.nextafter(wrong[0, 0, 0], np.float32(np.inf))
    values = np.zeros(len(wrong), dtype=np.float32)
    values[1] = np.nan
    owned = [("W1", len(values))]
    publish([("predictions.gw", pack("gw", "newer", owned, windows.end_us, values, window_hash(wrong)))])
    monitored = compare(data_plane, RECIPE, collect(data_plane))
    assert monitored.release == "newer"
    assert monitored.identical == monitored.compared - 1 == monitored.predictions - 1
    assert monitored.mae is not None
    assert np.isfinite(monitored.mae)  # one prediction that is no number costs only itself
