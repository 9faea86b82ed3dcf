"""When a challenger takes the champion's place."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fieldloop.domain.bootstrap import Blocks, blocks
from fieldloop.domain.promotion import Comparison, Rivals, compare, decide
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.recipe.split import ByDevice
from tests.domain.use_cases import use_case

Errors = NDArray[np.float32]
NUMBER = 2000
DEVICES = ("T1", "T2", "T3")
DEVICE = np.sort(np.arange(NUMBER) % 3).astype(np.int32)
TRUTH = np.random.default_rng(0).normal(10, 3, NUMBER).astype(np.float32)
ERROR = np.random.default_rng(1).normal(0, 1, NUMBER).astype(np.float32)


def ruled(**rule: object) -> Recipe:
    """The farm's recipe with another rule."""
    recipe = use_case("value")
    promotion = recipe.promotion.model_validate({"metric": "mae", **rule})
    return recipe.model_copy(update={"promotion": promotion})


def found(
    recipe: Recipe, ours: NDArray[np.float32], theirs: NDArray[np.float32], of: Blocks | None = None
) -> Comparison:
    """A comparison of two models by their errors."""
    end_us = np.arange(NUMBER) * 600_000_000
    of = of or blocks(recipe, DEVICE, end_us, np.zeros(NUMBER, np.int64))
    predicted = ((TRUTH + error)[:, None].astype(np.float32) for error in (ours, theirs))
    return compare(recipe, Rivals(DEVICES, DEVICE, TRUTH, *predicted), of)


@pytest.mark.parametrize(
    ("rule", "factor", "wins", "why"),
    [
        ({}, 0.8, True, "better by more than chance"),
        ({}, 1.0, False, "not better by more than chance"),
        ({}, 1.2, False, "not better by more than chance"),
        ({"margin": 0.1}, 0.8, True, "better by more than the margin and chance"),
        ({"margin": 0.19}, 0.8, False, "the recipe's margin of 19.0%"),
        ({"metric": "r2"}, 0.8, True, "r2 0."),
        ({"metric": "r2"}, 1.2, False, "not better"),
    ],
)
def test_better_by_more_than_the_interval(rule: dict[str, object], factor: float, wins: bool, why: str) -> None:
    """The whole interval of the lead must lie beyond the margin, in the direction of the metric."""
    random = np.random.default_rng(2)
    ours = (ERROR * factor + random.normal(0, 0.1, NUMBER)).astype(np.float32)
    recipe = ruled(**rule)
    promoted, reason = decide(recipe.promotion, found(recipe, ours, ERROR))
    assert promoted is wins
    assert why in reason
    assert "on the same 2,000 windows" in reason


def test_a_device_that_is_much_worse_stops_it() -> None:
    """Better in all, and half as bad again on one device: the reason names it, a wider limit or none lets it pass."""
    ours = np.where(DEVICE == 1, ERROR * 1.5, ERROR * 0.2).astype(np.float32)
    for limit, wins in ((0.2, False), (0.6, True), (None, True)):
        recipe = ruled(device_limit=limit)
        compared = found(recipe, ours, ERROR)
        promoted, reason = decide(recipe.promotion, compared)
        assert promoted is wins
        assert [pair.device for pair in compared.worse] == ([] if wins else ["T2"])
        assert ("worse by more than the 20% that the recipe allows on T2 (1." in reason) is not wins


def test_a_device_that_is_worse_by_chance_does_not() -> None:
    """A few windows whose errors merely fell that way have no interval of their own that says so."""
    ours = (ERROR * 0.8).astype(np.float32)
    ours[np.flatnonzero(DEVICE == 2)[:5]] = 40  # five adjoining windows: one bad afternoon
    compared = found(ruled(), ours, ERROR)
    assert compared.worse == ()


def test_too_few_blocks_promote_nobody() -> None:
    """However good it looks."""
    of = Blocks(np.arange(NUMBER) // 500, 4, "a whole run")
    recipe = ruled()
    promoted, reason = decide(recipe.promotion, found(recipe, ERROR * np.float32(0.1), ERROR, of))
    assert not promoted
    assert "4 blocks (a whole run) are fewer than the 8 that show how figures vary; hold out more" in reason


def test_one_class_only_promotes_nobody() -> None:
    """A ranking of one class says nothing, and the reason says so; so do devices, which are named."""
    recipe = use_case("class")
    recipe = recipe.model_copy(update={"promotion": recipe.promotion.model_copy(update={"metric": "auc"})})
    share = np.random.default_rng(0).random((NUMBER, 1)).astype(np.float32)
    of = Blocks(np.arange(NUMBER) // 100, 20, "x")
    compared = compare(recipe, Rivals(DEVICES, DEVICE, np.zeros(NUMBER, np.float32), share, share), of)
    promoted, reason = decide(recipe.promotion, compared)
    assert not promoted
    assert "only one class" in reason
    assert compared.unsaid == DEVICES


def test_a_device_without_held_out_windows_is_named() -> None:
    """It cannot stop a promotion, which says that nothing is known of it; where whole devices judge, others cannot."""
    rivals = Rivals(
        (*DEVICES, "T4"), DEVICE, TRUTH, *((TRUTH + error)[:, None].astype(np.float32) for error in (ERROR / 2, ERROR))
    )
    for split, named in (({}, True), ({"split": ByDevice(by="device", test=("T1",))}, False)):
        recipe = ruled().model_copy(update=split)
        compared = compare(recipe, rivals, Blocks(np.arange(NUMBER) // 100, 20, "x"))
        promoted, reason = decide(recipe.promotion, compared)
        assert promoted
        assert compared.unsaid == (("T4",) if named else ())
        assert ("; no held-out window says anything of T4" in reason) is named
