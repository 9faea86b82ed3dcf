"""Which windows lie closest to where a tree branches."""

import numpy as np
import onnx
from onnx import helper

from tasks.branches import closest


def graph(**attributes: list[int] | list[float] | list[str]) -> bytes:
    """A model of one node, with trees where attributes are given, else without."""
    node = (
        helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
        if attributes
        else helper.make_node("Neg", ["x"], ["y"])
    )
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    return helper.make_model(helper.make_graph([node], "trees", ends[:1], ends[1:])).SerializeToString()


TREES = graph(
    nodes_modes=["BRANCH_LT", "BRANCH_LEQ", "LEAF", "BRANCH_LT"],
    nodes_featureids=[0, 1, 0, 0],
    nodes_values=[2.0, 100.0, 0.0, 8.0],
)


def test_rows_at_thresholds_come_first() -> None:
    """By their distance in shares of the threshold, on either side and by any feature; a leaf's value is none."""
    features = np.array([[0, 0], [2.1, 0], [5, 99], [8, np.nan], [np.nan, 150], [100, 103]], np.float32)
    assert closest(TREES, features, 1).tolist() == [3]
    assert closest(TREES, features, 3).tolist() == [2, 3, 5]
    assert closest(TREES, features, 4).tolist() == [1, 2, 3, 5]
    assert closest(TREES, features, 99).tolist() == [0, 1, 2, 3, 4, 5]


def test_rows_without_a_value_and_models_without_trees() -> None:
    """Neither has anything to be close to."""
    assert closest(TREES, np.full((3, 2), np.nan, np.float32), 2).tolist() == []
    assert closest(graph(), np.zeros((3, 2), np.float32), 2).tolist() == []
