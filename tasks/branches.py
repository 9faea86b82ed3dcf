"""Where a graph's trees branch, and the windows that lie closest to that: there the smallest difference shows."""

import numpy as np
import onnx
from numpy.typing import NDArray


def closest(graph: bytes, features: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Choose the rows of which some feature lies closest to a threshold of a tree, by its share of the threshold.

    Args:
        graph: an ONNX model.
        features: [K, F] float32, what its trees are given.
        number: how many at most.

    Returns:
        [n] int64, increasing, n ≤ number; none where there is no tree.
    """
    nearest = np.full(len(features), np.inf)
    for column, limits in _thresholds(onnx.load_model_from_string(graph)).items():
        np.fmin(nearest, _distances(features[:, column].astype(np.float64), limits), out=nearest)
    known = np.flatnonzero(np.isfinite(nearest))
    return np.sort(known[np.argsort(nearest[known], kind="stable")[:number]])


def _distances(values: NDArray[np.float64], limits: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each value is from the nearest of sorted limits; NaN where it is missing."""
    after = np.searchsorted(limits, values).clip(1, len(limits) - 1) if len(limits) > 1 else np.zeros(len(values), int)
    sides = (limits[np.maximum(after - 1, 0)], limits[after])
    apart = [np.abs(values - side) / np.maximum(np.abs(side), np.finfo(np.float32).tiny) for side in sides]
    nearer: NDArray[np.float64] = np.fmin(*apart)
    return nearer


def _thresholds(model: onnx.ModelProto) -> dict[int, NDArray[np.float64]]:
    """The thresholds of all trees, sorted, by feature."""
    columns, limits = [], []
    for node in model.graph.node:
        found = {attribute.name: attribute for attribute in node.attribute}
        if "nodes_featureids" not in found:
            continue
        inner = np.array([mode != b"LEAF" for mode in found["nodes_modes"].strings], dtype=bool)
        columns.append(np.array(found["nodes_featureids"].ints)[inner])
        limits.append(np.array(found["nodes_values"].floats, dtype=np.float64)[inner])
    if not columns:
        return {}
    column, limit = np.concatenate(columns), np.concatenate(limits)
    return {int(each): np.unique(limit[column == each]) for each in np.unique(column)}
