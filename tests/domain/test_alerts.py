"""What is an alert, and what goes on."""

import numpy as np
import pytest

from fieldloop.domain.alerts import begins

ENDS = np.array([10, 20, 50, 55, 100])


@pytest.mark.parametrize(
    ("hold_us", "before_us", "expected"),
    [
        (0, None, [True] * 5),
        (10, None, [True, False, True, False, True]),
        (30, 5, [False, False, False, False, True]),
        (30, -50, [True, False, False, False, True]),
    ],
)
def test_an_alert_begins_where_none_lay_beyond_within_the_hold(
    hold_us: int, before_us: int | None, expected: list[bool]
) -> None:
    """Those that go on hold it up further; the batch before counts."""
    assert begins(ENDS, hold_us, before_us).tolist() == expected
    assert begins(ENDS[:0], hold_us, before_us).tolist() == []
