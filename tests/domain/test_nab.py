"""The benchmark's score on cases worked out by hand."""

from math import exp

import numpy as np
import pytest

from fieldloop.domain.nab import Series, best, probation, raw_score, score


def series(*alarms: int, windows: tuple[tuple[int, int], ...] = ((100, 109),), records: int = 200) -> Series:
    """A series with a record a microsecond, and alarms at some of them."""
    alarm = np.zeros(records, dtype=bool)
    alarm[list(alarms)] = True
    return Series(np.arange(records), alarm, windows)


def scaled(position: float) -> float:
    """The published curve."""
    return 2 / (1 + exp(5 * position)) - 1


def test_nothing_and_everything() -> None:
    """No alarm is 0, one at the first record of each window is 100."""
    assert score([series(), series()]) == 0
    assert score([series(100), series(100)]) == pytest.approx(100)
    assert score([series(100), series()]) == pytest.approx(50)


def test_early_is_better() -> None:
    """The first alarm within a window counts, by its place; later ones add nothing."""
    assert raw_score(series(105)) == pytest.approx(scaled(-0.5) / scaled(-1))
    assert raw_score(series(105, 107, 109)) == raw_score(series(105))
    assert raw_score(series(109)) == pytest.approx(scaled(-0.1) / scaled(-1))


def test_false_alarms() -> None:
    """Before any window and far behind one they cost all; right behind one hardly anything."""
    found = raw_score(series(100))
    assert raw_score(series(50, 100)) == pytest.approx(found - 0.11)
    assert raw_score(series(100, 190)) == pytest.approx(found - 0.11)
    assert raw_score(series(100, 110)) == pytest.approx(found + 0.11 * scaled(1 / 9))
    assert raw_score(series(100, 118)) == pytest.approx(found + 0.11 * scaled(1.0))


def test_probation() -> None:
    """The first 15 %, at most 750 records, are for learning: alarms there count neither way, nor windows missed."""
    assert (probation(200), probation(20_000)) == (30, 750)
    assert raw_score(series(10, 29, windows=())) == 0
    assert raw_score(series(30, windows=())) == -0.11
    assert raw_score(series(12, windows=((10, 20),))) == 0
    assert raw_score(series(windows=((25, 35),))) == -1


def test_several_windows() -> None:
    """Each is found or missed for itself, and a false alarm belongs to the one before it."""
    both = ((100, 109), (150, 159))
    assert raw_score(series(100, windows=both)) == pytest.approx(1 - 1)
    assert raw_score(series(100, 150, 160, windows=both)) == pytest.approx(2 + 0.11 * scaled(1 / 9))


def test_the_best_threshold_in_hindsight() -> None:
    """No other one scores more; records of one score are alarms together, and those of none never are."""
    random = np.random.default_rng(5)
    said = [np.where(random.random(300) < 0.2, np.nan, random.integers(0, 40, 300) / 10) for _ in range(4)]
    corpus = [Series(np.arange(300), each, ((60, 80), (200, 230))) for each in said]
    threshold, reached = best(corpus)
    assert reached == score(corpus, threshold) == max(score(corpus, each) for each in np.arange(1, 41) / 10)
    assert best([Series(np.arange(300), np.zeros(300), ((60, 80),))]) == (float("inf"), 0)
