"""When a certificate is renewed: a pure rule, with clocks that are right, late, early, and set by somebody."""

from datetime import UTC, datetime, timedelta

import pytest

from fieldloop.edge import validity
from fieldloop.edge.validity import Validity, wait_s

DAY = 86400.0
NOW = 1_800_000_000.0
KNOWN = Validity(NOW, NOW + 90 * DAY)


def test_the_first_line_of_an_identity_is_read_back() -> None:
    """Whole seconds, as certificates have; anything else says nothing."""
    since, until = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=90)
    read = validity.read(validity.line(since, until) + b"-----BEGIN PRIVATE KEY-----\n")
    assert read == Validity(since.timestamp(), until.timestamp())
    for other in (b"", b"-----BEGIN PRIVATE KEY-----\n", b"valid from now until then\n", b"\xff\n"):
        assert validity.read(other) is None


@pytest.mark.parametrize(("draw", "days"), [(0.0, 60.0), (0.5, 63.75), (0.999, 67.5)])
def test_it_is_renewed_after_two_thirds_and_some(draw: float, days: float) -> None:
    """Those enrolled together do not come together, and all long before the end."""
    assert wait_s(KNOWN, draw, NOW, 0.0, renewed=False) == pytest.approx(days * DAY, rel=0.001)
    assert wait_s(KNOWN, draw, NOW + days * DAY + 600, days * DAY + 600, renewed=False) <= 0


def test_an_unknown_validity_is_settled_by_renewing() -> None:
    """The file that comes says it."""
    assert wait_s(None, 0.5, NOW, 0.0, renewed=False) == 0


@pytest.mark.parametrize("clock", [0.0, NOW - 1, NOW + 91 * DAY, NOW + 3650 * DAY])
def test_a_clock_outside_the_life_asks_now_but_not_again_and_again(clock: float) -> None:
    """It may be the certificate that is over; where it is the clock, a new certificate changes nothing for a while."""
    assert wait_s(KNOWN, 0.5, clock, 0.0, renewed=False) == 0
    assert wait_s(KNOWN, 0.5, clock, 0.0, renewed=True) == pytest.approx(7.5 * DAY)
    assert wait_s(KNOWN, 0.5, clock, 7.5 * DAY, renewed=True) <= 0


def test_a_clock_set_back_does_not_put_it_off() -> None:
    """What this process has held for two thirds of its life is old, whatever the clock says."""
    assert wait_s(KNOWN, 0.0, NOW + DAY, 61 * DAY, renewed=False) <= 0
