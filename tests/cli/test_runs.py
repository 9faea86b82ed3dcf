"""How long a run's tasks took, where some ran beside others."""

import pytest

from fieldloop.cli.runs import _covered


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(1, 2), (3, 5)], 3),
        ([(1, 4), (2, 3)], 3),  # one within another
        ([(2, 6), (1, 4)], 5),  # in any order
    ],
)
def test_seconds_with_a_task(spans: list[tuple[float, float]], seconds: float) -> None:
    """Each second with at least one task counts once."""
    assert _covered(spans) == seconds
