"""Which part of a split each window belongs to."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fieldloop.domain.document import load
from fieldloop.domain.parts import NO_RUN, parts, runs
from fieldloop.domain.recipe import Recipe, to_us
from fieldloop.domain.recipe.target import Anomaly

TEXT = (Path(__file__).parents[2] / "recipes" / "turbine-power.yaml").read_text()
LENGTH = 6

Micros = NDArray[np.int64]


def recipe(split: str = "", target: str = "{metric: active_power}", window: str = "{length: 6}") -> Recipe:
    """The wind farm's recipe with another split, target or window."""
    text = TEXT.replace("{metric: active_power}", target).replace("{length: 6}", window)
    if split:
        text = re.sub(r"split:\n(  .*\n)+", f"split: {split}\n", text)
    return load(Recipe, text, "r.yaml")


def split_up(
    of: Recipe, device: list[int], end_us: NDArray[np.int64], run_us: NDArray[np.int64] | None = None
) -> list[str]:
    """The parts of windows of devices T0, T1 and so on."""
    names = [f"T{code}" for code in range(max(device) + 1)]
    run = np.zeros(len(end_us), np.int64) if run_us is None else run_us
    return parts(of, names, np.array(device, np.int32), end_us, run).tolist()


def test_time_leaves_an_embargo() -> None:
    """No window begins before its part or ends after it; those that reach across a border serve neither."""
    of = recipe()
    until = to_us(of.split.train_until)  # type: ignore[union-attr]
    end_us = until + np.arange(-30, 12) * of.step_us
    first_us = int(end_us[0])
    validate_from = until - int((until - first_us) * 0.2)
    found = split_up(of, [0] * len(end_us), end_us)
    assert found == ["train"] * 24 + [""] * 5 + ["validation"] + [""] * 5 + ["test"] * 7
    assert end_us[found.index("validation")] - 5 * of.step_us == validate_from
    assert split_up(of, [0], np.array([to_us(of.split.test_until)])) == [""]  # type: ignore[union-attr]


def test_embargo_is_as_long_as_window_and_horizon() -> None:
    """What a target looks ahead counts as much as what the window holds."""
    of = recipe(target="{metric: active_power, horizon: 4}")
    until = to_us(of.split.train_until)  # type: ignore[union-attr]
    end_us = until + np.arange(-1000, 20) * of.step_us
    found = np.array(split_up(of, [0] * len(end_us), end_us))
    assert end_us[found == "validation"].max() + 5 * of.step_us == until
    assert end_us[found == "test"].min() - 5 * of.step_us == until
    assert np.count_nonzero(found == "") == 2 * (5 + 4)


@given(st.integers(2, 9), st.integers(0, 9), st.integers(20, 200), st.floats(0.05, 0.9))
def test_no_step_is_shared_between_parts(length: int, horizon: int, windows: int, share: float) -> None:
    """Whatever the window, horizon and share, no grid step serves two parts."""
    of = recipe(
        target=f"{{metric: active_power, horizon: {horizon}}}", window=f"{{length: {max(length, 3)}}}"
    ).model_copy()
    of = of.model_copy(update={"split": of.split.model_copy(update={"validation_share": share})})
    until = to_us(of.split.train_until) // of.step_us  # type: ignore[union-attr]
    ends = until + np.arange(-windows, windows)
    found = split_up(of, [0] * len(ends), ends * of.step_us)
    seen: dict[int, str] = {}
    for end, part in zip(ends.tolist(), found, strict=True):
        for step in range(end - of.window.length + 1, end + horizon + 1) if part else ():
            assert seen.setdefault(step, part) == part


def test_devices_are_left_out() -> None:
    """A device that judges gives nothing to learn from; the end of the others' time chooses."""
    of = recipe("{by: device, test: ['T1*']}")
    ends = np.arange(100) * of.step_us
    found = split_up(of, [0] * 100 + [1] * 100, np.append(ends, ends))
    assert set(found[100:]) == {"test"}
    assert set(found[:100]) == {"train", "validation", ""}
    assert found[:100].count("") == 2 * (LENGTH - 1) - (LENGTH - 1)


def test_devices_that_choose() -> None:
    """Named devices choose, and then all of the others' time trains."""
    of = recipe("{by: device, test: [T1], validation: [T2]}")
    found = split_up(of, [0, 1, 2], np.arange(3) * of.step_us)
    assert found == ["train", "test", "validation"]


def test_each_device_s_own_history() -> None:
    """The begin of each device's windows trains, whenever it was, up to a bound."""
    of = recipe("{by: history, train_share: 0.5, validation_share: 0.25, most: 80}")
    ends = np.append(np.arange(100), 5000 + np.arange(40)) * of.step_us
    found = np.array(split_up(of, [0] * 100 + [1] * 40, ends))
    assert [np.flatnonzero(found[:100] == part).max() for part in ("train", "validation", "test")] == [39, 59, 99]
    assert [np.flatnonzero(found[100:] == part).max() for part in ("train", "validation", "test")] == [19, 29, 39]
    assert np.count_nonzero(found == "") == 4 * (LENGTH - 1)


def test_anomalies_read_what_their_stream_has() -> None:
    """Of no label is learnt, so that each window is in the part in which it ends."""
    of = recipe("{by: history, train_share: 0.5, validation_share: 0.25}")
    anomaly = of.model_copy(update={"target": Anomaly(kind="anomaly")})
    ends = np.arange(100) * of.step_us
    assert split_up(anomaly, [0] * 100, ends) == ["train"] * 50 + ["validation"] * 25 + ["test"] * 25


def test_runs_keep_their_side() -> None:
    """All windows of a run are in one part, about as many runs as wished, and more runs move none of the old ones."""
    of = recipe("{by: run, gap_steps: 10, test_share: 0.3, validation_share: 0.2}")
    begun = np.repeat(np.arange(400) * 1000 * of.step_us, 5)
    found = split_up(of, [0] * len(begun), begun, begun)
    assert all(len(set(found[at : at + 5])) == 1 for at in range(0, len(found), 5))
    assert found.count("test") / len(found) == pytest.approx(0.3, abs=0.06)
    assert found.count("validation") / len(found) == pytest.approx(0.2, abs=0.06)
    assert split_up(of, [0] * 50, begun[:50], begun[:50]) == found[:50]


def test_runs_begin_at_gaps() -> None:
    """A long gap begins a run, and a window that reaches across it belongs to none."""
    of = recipe("{by: run, gap_steps: 2}", window="{length: 3}")
    steps = np.array([0, 1, 2, 3, 5, 9, 10, 11])
    assert (runs(of, steps, None) // of.step_us).tolist() == [-1, -1, 0, 0, 0, -1, -1, 9]
    assert split_up(of, [0], np.zeros(1, np.int64), np.array([NO_RUN])) == [""]


def test_runs_are_numbered() -> None:
    """A channel that numbers the runs parts them, whatever steps it misses."""
    of = recipe("{by: run, metric: nacelle_angle}", window="{length: 3}")
    number = np.array([1, np.nan, 1, 1, 2, 2, np.nan, 2], np.float32)
    assert (runs(of, np.arange(8), number) // of.step_us).tolist() == [-1, -1, 0, 0, -1, -1, 4, 4]


def test_lot_is_for_windows_that_share_no_step() -> None:
    """With a stride as long as window and horizon, windows may be drawn by lot; the same windows draw the same."""
    of = recipe("{by: random}", window="{length: 6, stride: 6}")
    ends = np.arange(1000) * 6 * of.step_us
    found = split_up(of, [0] * 1000, ends)
    assert found.count("test") / 1000 == pytest.approx(0.2, abs=0.04)
    assert split_up(of, [0] * 10, ends[:10]) == found[:10]
    assert of.thinned(np.arange(12) * of.step_us).tolist() == ([True] + [False] * 5) * 2
