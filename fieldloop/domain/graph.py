"""The one ONNX graph from raw window to prediction: masks and features by spox, then the converted model.

    window float32 [N, R, T] → masks → features (float64 inside, float32 [N, F] out) → model → prediction float32 [N, 1]

Training runs the first half in batch for its feature matrix; a release carries both halves merged. For batches there is
a second build of the first half with the same bits, in two parts, between which the caller sorts the masked window:
sorting with NumPy is many times as fast as ONNX's TopK (docs/adr/0016).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from onnx import compose
from spox import Tensor, Var, argument, build

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.features.autocorrelation import autocorrelation
from fieldloop.domain.features.calendar import calendar
from fieldloop.domain.features.cleaned import Cleaned, sink, sort
from fieldloop.domain.features.columns import Columns, Features, columns
from fieldloop.domain.features.cross_channel import cross_channel
from fieldloop.domain.features.crossings import crossings
from fieldloop.domain.features.differences import differences
from fieldloop.domain.features.level import level
from fieldloop.domain.features.masks import Masked, mask
from fieldloop.domain.features.novelty import novelty
from fieldloop.domain.features.patterns import patterns
from fieldloop.domain.features.presence import presence
from fieldloop.domain.features.quantiles import quantiles
from fieldloop.domain.features.remoteness import remoteness
from fieldloop.domain.features.shape import shape
from fieldloop.domain.features.spectrum import spectrum
from fieldloop.domain.features.spread import spread
from fieldloop.domain.features.trend import trend
from fieldloop.domain.features.unrest import unrest
from fieldloop.domain.recipe import Family, InputChannel, Recipe

WINDOW: Final = "window"
MASKED: Final = "masked"
ORDERED: Final = "ordered"
FEATURES: Final = "features"
PREDICTION: Final = "prediction"
OPSET: Final = 17
ML_OPSET: Final = 3
IR_VERSION: Final = 8
_NAME: Final = "window_to_prediction"  # converters put a random name in, and the same model must give the same bytes

FAMILIES: Final[dict[Family, Callable[[Cleaned], Sequence[Columns | Features]]]] = {
    "presence": presence,
    "level": level,
    "spread": spread,
    "quantiles": quantiles,
    "shape": shape,
    "trend": trend,
    "differences": differences,
    "crossings": crossings,
    "autocorrelation": autocorrelation,
    "spectrum": spectrum,
    "novelty": novelty,
    "remoteness": remoteness,
    "patterns": patterns,
    "unrest": unrest,
    "cross_channel": cross_channel,
    "calendar": calendar,
}

_SORTED: Final[frozenset[Family]] = frozenset({"novelty", "quantiles"})  # families that need order statistics


@dataclass(frozen=True)
class BatchGraphs:
    """Masks and features for batches: `masks`, then a sort along time with NaN last, then `features`.

    Attributes:
        masks: `window` float32 [N, R, T] → `masked` float32 [N, R, T].
        features: `masked` and `ordered` float32 [N, R, T] → `features` float32 [N, F].
    """

    masks: onnx.ModelProto
    features: onnx.ModelProto


def feature_graph(recipe: Recipe) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Build masks and features of a recipe.

    Returns:
        The graph `window` float32 [N, R, T] → `features` float32 [N, F], and [F] names such as `wind_speed.mean`.
    """
    window = _windows(recipe)
    parts = _columns(recipe, _one(recipe, _mask(recipe, window)))
    names = tuple(name for part in parts for name in part.names)
    return _settled(build({WINDOW: window}, {FEATURES: _matrix(parts)})), names


def batch_graphs(recipe: Recipe) -> BatchGraphs:
    """Build the same for batches, to be sorted in between."""
    window, masked, ordered = (_windows(recipe) for _ in range(3))
    masks = build({WINDOW: window}, {MASKED: _mask(recipe, window).steps})
    parts = _columns(recipe, _many(recipe, masked, ordered))
    features = build({MASKED: masked, ORDERED: ordered}, {FEATURES: _matrix(parts)})
    return BatchGraphs(_settled(masks), _settled(features))


def _windows(recipe: Recipe) -> Var:
    return argument(Tensor(np.float32, ("N", len(recipe.rows), recipe.window.length)))


def _mask(recipe: Recipe, window: Var) -> Masked:
    """The clock is never missing."""
    return mask(window, [*recipe.channels, *(InputChannel(metric=row) for row in recipe.rows[len(recipe.channels) :])])


def _columns(recipe: Recipe, cleaned: Cleaned) -> list[Columns]:
    """All columns of the recipe's families, in its order."""
    return columns(recipe.inputs, [part for family in recipe.features for part in FAMILIES[family](cleaned)])


def _one(recipe: Recipe, masked: Masked) -> Cleaned:
    """A window behind its masks, sorted here where a family asks for it."""
    length, clock = recipe.window.length, _clock(recipe, masked.values)
    steps, values, there = (_channels(recipe, part) for part in masked)
    if _SORTED.isdisjoint(recipe.features):
        return Cleaned(steps, recipe.inputs, length, clock, there=there)
    sunken = sink(values, there)
    return Cleaned(steps, recipe.inputs, length, clock, sort(sunken, length), there, sunken)


def _many(recipe: Recipe, masked: Var, ordered: Var) -> Cleaned:
    """Windows that were masked and sorted elsewhere."""
    steps, in_order = _channels(recipe, masked), _channels(recipe, ordered)
    return Cleaned(steps, recipe.inputs, recipe.window.length, _clock(recipe, masked), in_order)


def _clock(recipe: Recipe, window: Var) -> Var | None:
    """[N], the clock at the last step."""
    if not recipe.clock:
        return None
    last = op.gather(window, op.const(np.int64(recipe.window.length - 1)), axis=2)
    return op.gather(last, op.const(np.int64(len(recipe.channels))), axis=1)


def _channels(recipe: Recipe, window: Var) -> Var:
    """The window without its clock."""
    if not recipe.clock:
        return window
    bounds = (0, len(recipe.channels), 1)
    return op.slice(window, *(op.const(np.array([bound], dtype=np.int64)) for bound in bounds))


def _matrix(parts: list[Columns]) -> Var:
    """[N, F] float32."""
    values = [part.values for part in parts]
    return op.cast(op.concat(values, axis=1) if len(values) > 1 else values[0], to=np.float32)


def merge(
    features: onnx.ModelProto, model: onnx.ModelProto, head: onnx.ModelProto | None = None, width: int = 1
) -> onnx.ModelProto:
    """Join the feature graph, a converted model, and the head that makes its output a prediction.

    Args:
        features: `window` → `features`.
        model: one input float32 [N, F], whose first output is float32 [N, K].
        head: one input float32 [N, K], one output float32 [N, P]; None where the model's output is the prediction.
        width: P.

    Returns:
        The graph `window` float32 [N, R, T] → `prediction` float32 [N, P], checked.

    Raises:
        TrainingError: if the model's operators are of another generation than the graph's.
    """
    merged, answer = _joined(features, FEATURES, model, "model/")
    if head is not None:
        merged, answer = _joined(merged, answer, head, "head/")
    merged.graph.doc_string = ""
    _rename_output(merged, answer, width)
    merged = _settled(merged)
    onnx.checker.check_model(merged, full_check=True)
    return merged


def _joined(first: onnx.ModelProto, output: str, second: onnx.ModelProto, prefix: str) -> tuple[onnx.ModelProto, str]:
    """Feed an output of one graph to another, and return both as one with the name of the second's first output."""
    second = compose.add_prefix(_settled(second), prefix)
    source, answer = second.graph.input[0].name, second.graph.output[0].name
    return compose.merge_models(first, second, io_map=[(output, source)], outputs=[answer], name=_NAME), answer


def _settled(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy at the opsets and format version that all parts share, so that they can be merged."""
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    settled.ir_version = IR_VERSION
    domains = set()
    for opset in settled.opset_import:
        expected = ML_OPSET if opset.domain == "ai.onnx.ml" else OPSET
        if opset.version > expected:
            raise TrainingError(
                f"converted model: expected operators {opset.domain or 'ai.onnx'} up to {expected}, "
                f"got {opset.version}: convert with target_opset {expected}"
            )
        domains.add((opset.domain, expected))
    del settled.opset_import[:]  # converters list them as a set of theirs comes, in another order in each process
    settled.opset_import.extend(onnx.helper.make_opsetid(*each) for each in sorted(domains))
    return settled


def _rename_output(model: onnx.ModelProto, name: str, width: int) -> None:
    """Give the output its name for good, and its shape: a row a window, its prediction in so many columns."""
    for node in model.graph.node:
        node.output[:] = [PREDICTION if output == name else output for output in node.output]
        node.input[:] = [PREDICTION if source == name else source for source in node.input]
    del model.graph.output[:]
    shape: list[str | int | None] = ["N", width]
    model.graph.output.append(onnx.helper.make_tensor_value_info(PREDICTION, onnx.TensorProto.FLOAT, shape))
