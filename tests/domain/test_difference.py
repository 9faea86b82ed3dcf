"""Where two graphs differ first."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fieldloop.domain.difference import first_difference


def graph(weights: tuple[float, ...] = (1.0, 2.0), operator: str = "Add", nodes: int = 1) -> onnx.ModelProto:
    """A chain of additions."""
    made = [helper.make_node(operator, ["x" if i == 0 else f"y{i}", "w"], [f"y{i + 1}"]) for i in range(nodes)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("x", f"y{nodes}")]
    initializer = numpy_helper.from_array(np.array(weights, np.float32), "w")
    return helper.make_model(helper.make_graph(made, "g", ends[:1], ends[1:], [initializer]))


def test_equal_graphs() -> None:
    """There is nothing to say, also where both hold the same gap."""
    assert first_difference(graph(), graph()) is None
    assert first_difference(graph((np.nan, 1.0)), graph((np.nan, 1.0))) is None


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (graph((1.0, 2.5)), "initializer 0, w: 1 of 2 values, first value 1: expected 2.0, got 2.5"),
        (graph((1.0, 2.0, 3.0)), "initializer 0, w: expected float32 [2], got float32 [3]"),
        (graph(operator="Mul"), "node 0, unnamed (Add): operator: expected Add, got Mul"),
        (graph(nodes=2), "output 0, y1: expected name"),
    ],
)
def test_first_place(other: onnx.ModelProto, expected: str) -> None:
    """It is named with what was expected and what is there."""
    assert (first_difference(graph(), other) or "").startswith(expected)
