"""Merging the feature graph with a converted model."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.graph import feature_graph, merge
from fieldloop.domain.recipe import Recipe
from fieldloop.domain.recipe.inputs import Window

RECIPE = Recipe.model_validate(
    {
        "name": "r",
        "description": "",
        "profiles": ["p"],
        "channels": [{"metric": "a"}, {"metric": "b"}],
        "target": {"metric": "y"},
        "grid": {"step_s": 60},
        "window": {"length": 3},
        "features": ["trend"],
        "split": {"train_until": "2020-01-01T00:00:00Z", "test_until": "2021-01-01T00:00:00Z"},
        "candidates": [{"algorithm": "ridge"}],
        "parity": {"limit": 1},
    }
)


def sum_model(opset: int) -> onnx.ModelProto:
    """A model that adds up all features; its names are those of the feature graph, to provoke a clash."""
    node = helper.make_node("ReduceSum", ["window"], ["features"], axes=None, keepdims=1) if opset < 13 else None
    node = node or helper.make_node("ReduceSum", ["window", "axes"], ["features"], keepdims=1)
    graph = helper.make_graph(
        [node],
        "sum",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 1])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_merged_graph_goes_from_window_to_prediction() -> None:
    """Names and shapes are those of a release, and the numbers those of both halves."""
    merged = merge(feature_graph(RECIPE)[0], sum_model(17))
    session = onnxruntime.InferenceSession(merged.SerializeToString())
    (source,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.shape, source.type) == ("window", ["N", 2, 3], "tensor(float)")
    assert (answer.name, answer.shape, answer.type) == ("prediction", ["N", 1], "tensor(float)")
    windows = np.array([[[1, 2, 3], [10, 20, 30]]], dtype=np.float32)
    assert session.run(None, {"window": windows})[0].tolist() == [[1 + 10 + 1 + 10]]


def test_same_recipe_gives_the_same_bytes() -> None:
    """Building twice gives one graph, so that a digest stands for it."""
    first, second = (merge(feature_graph(RECIPE)[0], sum_model(17)) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_model_of_a_newer_generation() -> None:
    """Operators newer than the graph's are refused, with the remedy."""
    with pytest.raises(TrainingError, match="target_opset 17"):
        merge(feature_graph(RECIPE)[0], sum_model(21))


def test_windows_of_one_step() -> None:
    """Records that have no past, such as samples in no order, are windows as well: of one value, said once."""
    recipe = RECIPE.model_copy(update={"window": Window(length=1), "features": ("level", "presence")})
    graph, names = feature_graph(recipe)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (found,) = session.run(None, {"window": np.array([[[2], [np.nan]]], dtype=np.float32)})
    shown = dict(zip(names, found[0].tolist(), strict=True))
    assert names == ("a.last", "a.count", "b.last", "b.count")
    assert [shown[f"a.{name}"] for name in ("last", "count")] == [2, 1]
    assert np.isnan(shown["b.last"])
    with pytest.raises(ValueError, match="`trend` needs windows of at least 2 steps, got 1"):
        Recipe.model_validate(RECIPE.model_dump() | {"window": {"length": 1}})
