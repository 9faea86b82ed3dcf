"""Parity certificates: what passes and what is refused."""

import numpy as np
import pytest

from fieldloop.domain.errors import ParityError
from fieldloop.domain.parity import Certificate, certify, require

NATIVE = np.array([1.0, 2.0, np.nan, 4.0], np.float32)


def certified(batch: list[float], alone: list[float], limit: float = 0.1) -> Certificate:
    """The certificate of graph outputs against NATIVE; windows 0 and 3 also ran alone."""
    columns = [np.array(values, np.float32)[:, None] for values in (batch, alone)]
    return certify(NATIVE[:, None], columns[0], np.array([0, 3]), columns[1], 1, limit, {"numpy": "2"})


def test_equal_outputs_pass() -> None:
    """The same predictions, NaN included, differ by nothing."""
    certificate = certified([1, 2, np.nan, 4], [1, 4])
    require(certificate)
    assert (certificate.max_abs_diff, certificate.rows, certificate.rows_alone_exact) == (0, 4, 2)


def test_difference_at_the_limit_passes() -> None:
    """The limit itself is allowed."""
    assert certified([1, 2.5, np.nan, 4], [1, 4], limit=0.5).passed


@pytest.mark.parametrize(
    ("batch", "alone", "said"),
    [
        ([1, 2.2, np.nan, 4], [1, 4], "differ by at most 0.1 on 4 held-out windows, got 0.2"),
        ([1, 2, np.nan, 4], [1, 5], "got 1"),
        ([1, 2, 3, 4], [1, 4], "NaN on one side only"),
        ([1, np.nan, np.nan, 4], [1, 4], "NaN on one side only"),
        ([1, np.inf, np.nan, 4], [1, 4], "got inf"),
    ],
)
def test_refusal(batch: list[float], alone: list[float], said: str) -> None:
    """A difference beyond the limit, in batch or alone, or a NaN where there is none, is refused in words."""
    with pytest.raises(ParityError, match=said):
        require(certified(batch, alone))


def test_nothing_to_compare() -> None:
    """No rows prove nothing."""
    none = np.zeros((0, 1), np.float32)
    with pytest.raises(ParityError, match="got none"):
        require(certify(none, none, np.zeros(0, np.int64), none, 0, 1.0, {}))


def test_unequal_numbers_of_rows() -> None:
    """Predictions that do not pair up are an error, not a comparison."""
    with pytest.raises(ParityError, match="got 4 and 1"):
        certified([1], [])


def test_codes_are_counted_apart() -> None:
    """A class's code that differs is a flip, not a difference; the probabilities behind it are compared."""
    native = np.array([[0, 0.6, 0.4], [1, 0.4999, 0.5001]], np.float32)
    graph = np.array([[0, 0.6, 0.4], [0, 0.5001, 0.4999]], np.float32)
    certificate = certify(native, graph, np.array([1]), graph[1:], 0, 0.001, {})
    assert certificate.passed
    assert certificate.label_flips == 1
    assert certificate.max_abs_diff == pytest.approx(0.0002, abs=1e-6)
