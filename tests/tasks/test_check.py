"""What `fieldloop recipe check` says of recipes that would teach nothing, or something false."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.document import load
from fieldloop.domain.errors import DocumentError, TrainingError
from fieldloop.domain.recipe import Recipe
from fieldloop.stores.settings import Settings
from tasks.check import Checked, inspect, require_channels
from tasks.leaks import likenesses, refuse_leaks
from tests.tasks.farm import TEXT, FarmSettings, farm, windows_of

CLASSES = "{kind: class, labels: {file: a.csv}, classes: [calm, rough, storm]}"


def recipe(target: str = "{metric: active_power}", split: str = "") -> Recipe:
    """The farm's recipe with another target or split, and one candidate that suits it."""
    kind = "majority" if "class" in target else "pca" if "anomaly" in target else "mean"
    text = re.sub(r"candidates:\n(  .*\n)+promotion: .*\n", f"candidates: [{{algorithm: {kind}}}]\n", TEXT)
    text = re.sub(r"split: .*\n", f"split: {split}\n", text) if split else text
    return load(Recipe, text.replace("NAME", "tiny").replace("{metric: active_power}", target), "r.yaml")


def said(checked: Checked) -> str:
    """All findings in one text."""
    return "\n".join(f"{finding.severity}: {finding.text}" for finding in checked.findings)


def test_sound_recipe() -> None:
    """Parts, devices and example rows are shown, and nothing is found."""
    checked = inspect(windows_of(recipe()))
    assert checked.sound, said(checked)
    assert checked.parts["part"].to_list() == ["train", "validation", "test"]
    assert checked.parts["windows"].min() > 1000  # type: ignore[operator]
    assert checked.devices["device"].to_list() == ["T1", "T2"]
    assert set(checked.rows["part"]) == {"train", "validation", "test"}
    assert "active_power (target)" in checked.rows.columns


def test_a_copy_of_the_target() -> None:
    """A channel that is the target in another unit is found, and training refuses it as well."""
    found = windows_of(recipe(), pitch_angle=(pl.col("active_power") * 1.8 + 32).cast(pl.Float32))
    assert "problem: recipe tiny: channel `pitch_angle` gives the target `active_power` away" in said(inspect(found))
    with pytest.raises(TrainingError, match=r"Take the channel out, or predict further ahead"):
        refuse_leaks(found)


def test_a_channel_that_nearly_tells_a_class() -> None:
    """A channel on one side of a line for one class and on the other for the rest is worth a question."""
    of = recipe("{kind: class, labels: {file: a.csv}, classes: [calm, rough]}")
    found = windows_of(of, (pl.col("outdoor_temperature") > 10) ^ (pl.int_range(pl.len()) % 400 == 0))
    assert "channel `outdoor_temperature` alone nearly tells the target" in said(inspect(found))
    assert max(like.share for like in likenesses(found)) > 0.98


def test_an_empty_class() -> None:
    """A class that no training window has stops it; one that no held-out window has is remarked upon."""
    found = windows_of(recipe(CLASSES), (pl.col("end_time").dt.day() > 28).cast(pl.Int32))
    text = said(inspect(found))
    assert "problem: class `storm` has no window in train: mend the labels, move the split" in text
    assert "calm" in inspect(found).parts.columns


def test_a_constant_channel_and_a_dead_one() -> None:
    """A channel that never changes teaches nothing; one without a value cannot be meant."""
    found = windows_of(recipe(), pitch_angle=pl.lit(7.0, pl.Float32), wind_speed=pl.lit(None, pl.Float32))
    text = said(inspect(found))
    assert "warning: channel `pitch_angle` is 7 in every training window: it teaches nothing" in text
    assert "problem: channel `wind_speed` has no value in any training window" in text


def test_a_device_without_labels() -> None:
    """A device of whose windows nobody knows the target is named; no label at all is a problem."""
    known = pl.when(pl.col("device") == "T1").then(pl.col("active_power"))
    checked = inspect(windows_of(recipe(), known))
    assert "warning: device T2 has 8,637 windows and no label: none of them serves" in said(checked)
    nothing = inspect(windows_of(recipe(), pl.lit(None)))
    assert "problem: no window has a target" in said(nothing)


def test_a_split_that_leaves_a_part_empty() -> None:
    """Devices that are not there cannot judge."""
    checked = inspect(windows_of(recipe(split="{by: device, test: [T9]}")))
    assert "problem: no window is left for test: change the recipe's split" in said(checked)


def test_borders_that_cost_more_than_they_leave() -> None:
    """Where a target looks far ahead, the end of each device's time is no place to choose by: whole devices are."""
    countdown = "{kind: time_to_event, at_end: true, unit: h, cap: 600}"
    text = said(inspect(windows_of(recipe(countdown, "{by: device, test: [T2]}"), pl.lit(1.0, pl.Float32))))
    assert re.search(r"warning: [\d,]+ of [\d,]+ windows with a target serve no part, as each reads", text)
    assert "and its target looks 3,600 ahead: name whole devices that choose: `validation` of the split" in text
    assert "serve no part" not in said(inspect(windows_of(recipe(split="{by: device, test: [T2]}"))))


def test_anomalies_need_no_labels() -> None:
    """Without a label anywhere there is nothing to complain of."""
    checked = inspect(windows_of(recipe("{kind: anomaly}"), pl.lit(None)))
    assert checked.sound, said(checked)
    assert checked.parts["target"].to_list() == ["unlabelled"] * 3


def test_a_channel_that_no_profile_has(platform_root: FarmSettings) -> None:
    """The line in the recipe is named, and the channel that was probably meant."""
    path = platform_root.root / "recipes" / "tiny-check.yaml"
    path.write_text(path.read_text().replace("metric: pitch_angle", "metric: pitch_angel"))
    with pytest.raises(DocumentError, match=r"tiny-check.yaml:7: profile .* has no channel `pitch_angel`; did you"):
        require_channels(platform_root, load(Recipe, path.read_text(), "r.yaml"))


@pytest.fixture
def platform_root(tmp_path: Path) -> FarmSettings:
    """The farm's recipe in a folder of its own; no service runs."""
    return farm(Settings(), tmp_path, "tiny-check")


def test_half_of_a_random_target_is_no_leak() -> None:
    """Noise tells nothing."""
    found = windows_of(recipe(), pl.lit(np.random.default_rng(0).random(17_274)).cast(pl.Float32))
    assert all(like.share < 0.1 for like in likenesses(found))
