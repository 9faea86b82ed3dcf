"""The one ONNX graph from raw window to prediction: masks and features by spox, then the converted model.

    window float32 [N, C, T] → masks → features (float64 inside, float32 [N, F] out) → model → prediction float32 [N, 1]

Training runs the first half in batch for its feature matrix; a release carries both halves merged.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from onnx import compose
from spox import Tensor, Var, argument, build

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.level import level
from fieldloop.domain.features.masks import mask
from fieldloop.domain.features.spread import spread
from fieldloop.domain.features.trend import trend
from fieldloop.domain.recipe import Family, Recipe

WINDOW: Final = "window"
FEATURES: Final = "features"
PREDICTION: Final = "prediction"
OPSET: Final = 17
ML_OPSET: Final = 3
IR_VERSION: Final = 8
_NAME: Final = "window_to_prediction"  # converters put a random name in, and the same model must give the same bytes

FAMILIES: Final[dict[Family, Callable[[Cleaned], dict[str, Var]]]] = {"level": level, "spread": spread, "trend": trend}


def feature_graph(recipe: Recipe) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Build masks and features of a recipe.

    Returns:
        The graph `window` float32 [N, C, T] → `features` float32 [N, F], and [F] names such as `wind_speed.mean`.
    """
    channels, length = len(recipe.channels), recipe.window.length
    window = argument(Tensor(np.float32, ("N", channels, length)))
    cleaned = Cleaned(mask(window, recipe.channels), channels, length)
    built = [feature for family in recipe.features for feature in FAMILIES[family](cleaned).items()]
    names = tuple(f"{metric}.{feature}" for feature, _ in built for metric in recipe.inputs)
    matrix = op.cast(op.concat([values for _, values in built], axis=1), to=np.float32)
    return _settled(build({WINDOW: window}, {FEATURES: matrix})), names


def merge(features: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Join the feature graph and a converted model.

    Args:
        features: `window` → `features`.
        model: one input float32 [N, F], whose first output is float32 [N, 1].

    Returns:
        The graph `window` float32 [N, C, T] → `prediction` float32 [N, 1], checked.

    Raises:
        TrainingError: if the model's operators are of another generation than the graph's.
    """
    model = compose.add_prefix(_settled(model), "model/")
    source, answer = model.graph.input[0].name, model.graph.output[0].name
    merged = compose.merge_models(features, model, io_map=[(FEATURES, source)], outputs=[answer], name=_NAME)
    merged.graph.doc_string = ""
    _rename_output(merged, answer)
    merged = _settled(merged)
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at the opsets and format version that all parts share, so that they can be merged."""
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    settled.ir_version = IR_VERSION
    for opset in settled.opset_import:
        expected = ML_OPSET if opset.domain == "ai.onnx.ml" else OPSET
        if opset.version > expected:
            raise TrainingError(
                f"converted model: expected operators {opset.domain or 'ai.onnx'} up to {expected}, "
                f"got {opset.version}: convert with target_opset {expected}"
            )
        opset.version = expected
    return settled


def _rename_output(model: onnx.ModelProto, name: str) -> None:
    """Give the output its name for good, and its shape: a row a window, one prediction each."""
    for node in model.graph.node:
        node.output[:] = [PREDICTION if output == name else output for output in node.output]
        node.input[:] = [PREDICTION if source == name else source for source in node.input]
    del model.graph.output[:]
    shape: list[str | int | None] = ["N", 1]
    model.graph.output.append(onnx.helper.make_tensor_value_info(PREDICTION, onnx.TensorProto.FLOAT, shape))
