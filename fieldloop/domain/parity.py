"""Parity: the proof that the graph which goes to the edge predicts what the trained model predicts.

Compared on the same held-out windows are

- native: the trained model as its own library runs it, on features from the feature graph run in batch;
- batch: the merged graph in onnxruntime, on raw windows, many at once;
- alone: the merged graph on raw windows one at a time, as a gateway runs it.
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.errors import ParityError

COMPARED: Final = "merged graph on raw windows, in batch and one at a time, against the native model on the features"


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the comparison gave.

    Attributes:
        rows: held-out windows compared in batch.
        rows_with_gaps: those of them in which some feature is missing.
        rows_alone: those also run one at a time.
        rows_alone_exact: those that then gave the very bits of the batch.
        max_abs_diff: largest absolute difference between native and graph, batch or alone, unit of the target; None
            where one predicts NaN and the other does not.
        label_flips: rows whose class differs; 0 for regression.
        limit: largest difference that the recipe allows.
        passed: within the limit.
        runtime: versions that computed it, by package.
        compared: what was compared, in words.
        rows_at_branches: of the rows, those chosen since a tree nearly branches the other way.
    """

    rows: int
    rows_with_gaps: int
    rows_alone: int
    rows_alone_exact: int
    max_abs_diff: float | None
    label_flips: int
    limit: float
    passed: bool
    runtime: dict[str, str]
    compared: str = COMPARED
    rows_at_branches: int = 0  # as certificates have it that were given before it was counted


def certify(
    native: NDArray[np.float32],
    batch: NDArray[np.float32],
    rows_alone: NDArray[np.int64],
    alone: NDArray[np.float32],
    rows_with_gaps: int,
    limit: float,
    runtime: dict[str, str],
    rows_at_branches: int = 0,
) -> Certificate:
    """Compare predictions on the same windows.

    Args:
        native: [N, P] float32; with several columns the first is a class's code, and the rest are probabilities.
        batch: [N, P] float32.
        rows_alone: [K] int64, which of the N were also run one at a time.
        alone: [K, P] float32, what they then gave.
        rows_with_gaps: of the N windows, those with a missing feature.
        limit: largest difference allowed, unit of the target.
        runtime: versions that computed them, by package.
        rows_at_branches: of the N windows, those chosen since a tree nearly branches the other way.
    """
    if native.shape[1:] != batch.shape[1:]:
        raise ParityError(f"parity: expected as many columns from both, got {native.shape[1:]} and {batch.shape[1:]}")
    numbers = slice(1, None) if native.shape[1] > 1 else slice(None)
    differences = [
        _largest_difference(native[:, numbers], batch[:, numbers]),
        _largest_difference(native[rows_alone][:, numbers], alone[:, numbers]),
    ]
    flips = int(np.count_nonzero(native[:, 0] != batch[:, 0])) if native.shape[1] > 1 else 0
    known = [difference for difference in differences if difference is not None]
    largest = max(known) if len(known) == len(differences) else None
    exact = int(np.count_nonzero((_bits(batch[rows_alone]) == _bits(alone)).all(axis=1)))
    passed = largest is not None and largest <= limit and len(native) > 0
    counts = len(native), rows_with_gaps, len(alone), exact
    versions = dict(sorted(runtime.items()))
    return Certificate(*counts, largest, flips, limit, passed, versions, rows_at_branches=rows_at_branches)


def require(certificate: Certificate) -> None:
    """Refuse a graph that differs from its model by more than the recipe allows.

    Raises:
        ParityError: if the certificate did not pass.
    """
    if certificate.passed:
        return
    if not certificate.rows:
        raise ParityError("parity: expected held-out windows to compare on, got none: check the recipe's split")
    got = "NaN on one side only" if certificate.max_abs_diff is None else f"{certificate.max_abs_diff:g}"
    raise ParityError(
        f"parity: expected graph and native model to differ by at most {certificate.limit:g} on {certificate.rows} "
        f"held-out windows, got {got}: nothing is registered; train again, or raise the recipe's parity.limit if "
        "that difference does no harm"
    )


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _largest_difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float | None:
    """The largest absolute difference, 0 for no rows; None where only one is NaN. Two NaNs agree."""
    if len(first) != len(second):
        raise ParityError(f"parity: expected as many predictions from both, got {len(first)} and {len(second)}")
    absent = np.isnan(first)
    if (absent != np.isnan(second)).any():
        return None
    distance = np.abs(first.astype(np.float64) - second.astype(np.float64))[~absent]
    return float(distance.max(initial=0.0))
