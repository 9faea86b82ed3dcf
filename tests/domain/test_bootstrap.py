"""Intervals of figures: as wide as the data's own neighbourhoods ask for, and the same every time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fieldloop.domain.bootstrap import LEAST_BLOCKS, Blocks, blocks, gained, intervals
from fieldloop.domain.document import load
from fieldloop.domain.metrics import judge
from fieldloop.domain.recipe import Recipe
from tests.domain.use_cases import TARGETS, made_up, use_case
from tests.tasks.farm import TEXT

STEP_US = 600_000_000
TRIES = 60


def by(split: str) -> Recipe:
    """The farm's recipe, split in another way."""
    begin = TEXT.index("split:")
    text = TEXT[:begin] + f"split: {split}\n" + TEXT[TEXT.index("candidates:") :]
    return load(Recipe, text.replace("NAME", "tiny"), "r.yaml")


def alike(random: np.random.Generator, number: int, over: int) -> NDArray[np.float32]:
    """Errors of which each is the mean of what lies up to so many steps back: as overlapping windows make them."""
    noise = random.normal(0, 1, number + over - 1)
    return np.convolve(noise, np.ones(over) / over, "valid").astype(np.float32)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Errors that last eight windows: blocks hold the true error in most worlds, windows alone in far fewer."""
    recipe, number = use_case("value"), 1000
    end_us, random = np.arange(number) * STEP_US, np.random.default_rng(1)
    of = blocks(recipe, np.zeros(number, np.int32), end_us, np.zeros(number, np.int64))
    alone = Blocks(np.arange(number), number, "a window")
    expected = float(np.sqrt(2 / np.pi) / np.sqrt(8))  # mean size of the mean of eight standard normal errors
    held = {"blocks": 0, "windows": 0}
    for _ in range(TRIES):
        error = alike(random, number, 8)[:, None]
        truth = np.zeros(number, np.float32)
        for name, drawn in (("blocks", of), ("windows", alone)):
            found = intervals(recipe, truth, error, drawn)["mae"]
            held[name] += found.low <= expected <= found.high
    assert held["blocks"] >= 0.85 * TRIES
    assert held["windows"] <= 0.65 * TRIES


@pytest.mark.parametrize("kind", TARGETS)
def test_every_kind_of_target(kind: str) -> None:
    """Every figure lies in its interval, and the same windows give the same one again."""
    recipe = use_case(kind)
    truth, predicted = made_up(kind, 3000)
    of = blocks(recipe, np.zeros(3000, np.int32), np.arange(3000) * STEP_US, np.zeros(3000, np.int64))
    found = intervals(recipe, truth, predicted, of)
    for name, value in judge(recipe, truth, predicted).items():
        assert found[name].low <= value <= found[name].high, name
        assert found[name].low < found[name].high, name
    assert intervals(recipe, truth, predicted, of) == found


def test_a_pair_is_told_apart_where_each_alone_is_not() -> None:
    """What is hard for both cancels out: a small lead is sure, though the intervals of the two overlap."""
    recipe, random = use_case("value"), np.random.default_rng(2)
    truth = np.zeros(3000, np.float32)
    size = np.repeat(random.gamma(2, 1, 30), 100)  # hard and easy days
    error = (random.normal(0, 1, 3000) * size).astype(np.float32)[:, None]
    of = blocks(recipe, np.zeros(3000, np.int32), np.arange(3000) * STEP_US, np.zeros(3000, np.int64))
    worse, better = (intervals(recipe, truth, each, of)["mae"] for each in (error, error * np.float32(0.97)))
    assert better.high > worse.low
    lead = gained(recipe, "mae", truth, error * np.float32(0.97), error, of)
    assert 0 < lead.low < lead.high
    assert gained(recipe, "mae", truth, error, error, of).high == 0


def test_few_blocks_say_nothing() -> None:
    """One block, or seven, gives no interval rather than a narrow one."""
    truth, predicted = made_up("value", 700)
    few = Blocks(np.arange(700) // 100, LEAST_BLOCKS - 1, "x")
    assert np.isnan(intervals(use_case("value"), truth, predicted, few)["mae"].low)


def test_one_class_only_leaves_its_rank_open() -> None:
    """Where no draw has both classes, the ranking has no interval and the rest has."""
    recipe = use_case("class")
    predicted = np.random.default_rng(0).random((1000, 1)).astype(np.float32)
    found = intervals(recipe, np.zeros(1000, np.float32), predicted, Blocks(np.arange(1000) // 50, 20, "x"))
    assert np.isnan(found["auc"].low)
    assert found["log_loss"].low < found["log_loss"].high


def test_time_is_cut_for_all_devices_at_once() -> None:
    """Two devices' windows of one moment are drawn together; stretches are at least as long as what a window reads."""
    end_us = np.tile(np.arange(5000) * STEP_US, 2)
    of = blocks(use_case("value"), np.repeat([0, 1], 5000).astype(np.int32), end_us, np.zeros(10_000, np.int64))
    np.testing.assert_array_equal(of.code[:5000], of.code[5000:])
    assert (of.number, of.unit) == (100, "8.33 hours of all devices")
    short = blocks(use_case("value"), np.zeros(40, np.int32), end_us[:40], np.zeros(40, np.int64))
    assert np.bincount(short.code).max() == 4


def test_devices_are_drawn_whole_where_there_are_enough() -> None:
    """Twenty left-out devices are twenty blocks; two are cut into stretches of their own."""
    device, end_us = np.repeat(np.arange(20), 100).astype(np.int32), np.tile(np.arange(100) * STEP_US, 20)
    many = blocks(by("{by: device, test: ['T*']}"), device, end_us, np.zeros(2000, np.int64))
    assert (many.number, many.unit) == (20, "a whole device")
    few = blocks(by("{by: device, test: ['T*']}"), device[:200], end_us[:200], np.zeros(200, np.int64))
    assert few.unit == "100 minutes of one device"
    assert not set(few.code[:100]) & set(few.code[100:])


def test_runs_are_drawn_whole_where_there_are_enough() -> None:
    """A run is one device's: two devices' runs that begin at one moment are two."""
    device, run = np.repeat([0, 1], 500).astype(np.int32), np.tile(np.repeat(np.arange(10), 50), 2)
    of = blocks(by("{by: run, gap_steps: 5}"), device, np.tile(np.arange(500) * STEP_US, 2), run * STEP_US)
    assert (of.number, of.unit) == (20, "a whole run")
