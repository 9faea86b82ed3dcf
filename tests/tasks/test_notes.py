"""What a run says before its figures are believed, what it draws, and that nothing of it was learnt from the test."""

import re

import numpy as np
import polars as pl
import pytest

from fieldloop.domain.document import load
from fieldloop.domain.recipe import Recipe
from tasks.fitting import Fitted, fit
from tasks.materials import prepare
from tasks.notes import notes
from tasks.pictures import pictures
from tests.tasks.farm import SPLIT, STEPS, TEXT, windows_of

TREES = "{algorithm: extra_trees, trees: 5, leaves: 64}"
CLASS = "{kind: class, labels: {file: a.csv}, classes: [calm, rough, storm], otherwise: calm}"
AFTER = pl.col("step_time") >= SPLIT
HOURS = pl.int_range(pl.len()) % STEPS / 6


def fitted(candidate: str, metric: str, kind: str = "{metric: active_power}", target: pl.Expr | None = None,
           **columns: pl.Expr) -> Fitted:  # fmt: skip
    """One candidate on the farm's windows, with another kind of target, other targets, or other channels."""
    text = re.sub(r"candidates:\n(  .*\n)+promotion: .*\n", f"candidates: [{candidate}]\npromotion: {metric}\n", TEXT)
    recipe = load(Recipe, text.replace("NAME", "tiny").replace("{metric: active_power}", kind), "r.yaml")
    materials = prepare(recipe, windows_of(recipe, target, **columns))
    return fit(recipe.candidates[0], materials, seed=7)


def test_nothing_is_said_of_a_sound_run() -> None:
    """Power that follows the wind, in the same weather before and after the split."""
    assert notes(fitted(TREES, "{metric: mae}")) == ()


def test_a_random_split_that_would_have_looked_better_by_far() -> None:
    """What moves slowly is known from the windows beside it, and says nothing of the weeks to come."""
    said = "\n".join(notes(fitted(TREES, "{metric: mae}", target=(HOURS / 40).sin(), pitch_angle=HOURS)))
    found = re.search(r"A random split would have looked better by far: mae (\S+) in place of (\S+) ", said)
    assert found is not None, said
    assert float(found[1]) < 0.5 * float(found[2])


def test_a_channel_that_nearly_tells_the_target_and_one_that_shifts() -> None:
    """Both are named with their numbers; the shift once for the channel, not for each of its features."""
    telling = pl.col("active_power") + 15 * pl.col("outdoor_temperature")
    shifted = pl.col("outdoor_temperature") + pl.when(AFTER).then(9).otherwise(0)
    said = notes(fitted(TREES, "{metric: mae}", pitch_angle=telling, outdoor_temperature=shifted))
    assert any(
        re.match(r"Channel `pitch_angle` \(0\.9\d\d of 1\) alone nearly tells the target", note) for note in said
    )
    assert [note for note in said if note.startswith("From learning to judging, the distribution of channel `outdoor_")]
    assert not any("distribution of feature" in note for note in said)


def test_a_device_and_a_class_that_nobody_judged() -> None:
    """What the held-out windows do not hold is named: the figures say nothing of it."""
    calm = (pl.col("end_time") < SPLIT) & (pl.int_range(pl.len()) % 3 == 0)
    codes = pl.when(calm).then(2).otherwise(pl.int_range(pl.len()) % 2)
    known = pl.when((pl.col("device") == "T1") | (pl.col("end_time") < SPLIT)).then(codes)
    run = fitted("{algorithm: xgboost, trees: 2}", "{metric: log_loss}", CLASS, known)
    said = "\n".join(notes(run))
    assert "No held-out window is of device T2" in said
    assert "No held-out window is of class `storm`" in said
    drawn = pictures(run, "class")
    assert set(drawn) == {f"plots/{name}.png" for name in ("confusion", "calibration", "ranking", "importance")}


@pytest.mark.parametrize("statistic", ["q", "both"])
def test_thresholds_are_of_what_was_learnt_alone(statistic: str) -> None:
    """However the test windows differ, the graph, its threshold with it, has the same bytes."""
    candidate, kind = f"{{algorithm: pca, statistic: {statistic}}}", "{kind: anomaly, labels: {file: a.csv}}"
    windy = pl.when(AFTER).then(pl.col("wind_speed") * 3 + 1).otherwise(pl.col("wind_speed"))
    labels = (pl.int_range(pl.len()) % 500 < 9).cast(pl.Float32)
    plain, other = (
        fitted(candidate, "{metric: auc}", kind, labels, **columns) for columns in ({}, {"wind_speed": windy})
    )
    assert not np.array_equal(plain.predicted, other.predicted)
    assert plain.graph.SerializeToString() == other.graph.SerializeToString()
    drawn = pictures(plain, "share of the threshold")
    assert {"plots/scores.png", "plots/ranking.png"} <= set(drawn)
    assert all(axes.patches or axes.collections for axes in drawn["plots/scores.png"].axes)  # the labels' bands
