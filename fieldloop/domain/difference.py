"""The first place at which two ONNX graphs differ, in words."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

_SHOWN: Final = 80  # characters of a value that a message shows


def first_difference(expected: onnx.ModelProto, got: onnx.ModelProto) -> str | None:
    """Say where two graphs differ first: operators, inputs and outputs, initializers, nodes; None where nowhere."""
    return next(_differences(expected, got), None)


def _differences(expected: onnx.ModelProto, got: onnx.ModelProto) -> Iterator[str]:
    yield from _of_field("format version", expected.ir_version, got.ir_version)
    yield from _of_field("operator sets", _opsets(expected), _opsets(got))
    for kind in ("input", "output"):
        yield from _in_order(kind, getattr(expected.graph, kind), getattr(got.graph, kind), _of_message)
    yield from _in_order("initializer", expected.graph.initializer, got.graph.initializer, _of_initializers)
    yield from _in_order("node", expected.graph.node, got.graph.node, _of_nodes)
    if expected != got:
        yield "names or notes beside the graph itself"


def _opsets(model: onnx.ModelProto) -> list[str]:
    return [f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in model.opset_import]


def _in_order(
    kind: str, expected: Sequence[Any], got: Sequence[Any], differences: Callable[[str, Any, Any], Iterator[str]]
) -> Iterator[str]:
    """Compare two lists place by place."""
    for place, (ours, theirs) in enumerate(zip_longest(expected, got)):
        if ours is None or theirs is None:
            yield f"{kind} {place}: expected {len(expected)} of them, got {len(got)}"
            return
        if ours != theirs:
            yield from differences(f"{kind} {place}, {ours.name or 'unnamed'}", ours, theirs)


def _of_message(where: str, expected: Any, got: Any) -> Iterator[str]:
    yield from _of_field(where, str(expected), str(got))


def _of_initializers(where: str, expected: onnx.TensorProto, got: onnx.TensorProto) -> Iterator[str]:
    yield from _of_field(f"{where}: name", expected.name, got.name)
    yield from _of_values(where, numpy_helper.to_array(expected), numpy_helper.to_array(got))


def _of_nodes(where: str, expected: onnx.NodeProto, got: onnx.NodeProto) -> Iterator[str]:
    where = f"{where} ({expected.op_type})"
    yield from _of_field(f"{where}: operator", expected.op_type, got.op_type)
    yield from _of_field(f"{where}: inputs", list(expected.input), list(got.input))
    yield from _of_field(f"{where}: outputs", list(expected.output), list(got.output))
    yield from _in_order(f"{where}: attribute", expected.attribute, got.attribute, _of_attributes)
    yield f"{where}: name, domain or notes"


def _of_attributes(where: str, expected: onnx.AttributeProto, got: onnx.AttributeProto) -> Iterator[str]:
    yield from _of_field(f"{where}: name", expected.name, got.name)
    ours, theirs = onnx.helper.get_attribute_value(expected), onnx.helper.get_attribute_value(got)
    if isinstance(ours, onnx.TensorProto) and isinstance(theirs, onnx.TensorProto):
        yield from _of_initializers(where, ours, theirs)
    elif isinstance(ours, list) and isinstance(theirs, list):
        yield from _of_values(where, np.array(ours), np.array(theirs))
    yield from _of_field(where, ours, theirs)


def _of_values(where: str, expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> Iterator[str]:
    """The first of the values that differ, and how many do."""
    if expected.dtype != got.dtype or expected.shape != got.shape:
        yield f"{where}: expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}"
        return
    ours, theirs = expected.ravel(), got.ravel()
    known = np.issubdtype(expected.dtype, np.inexact)
    unlike = np.flatnonzero((ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs) if known else False))
    if len(unlike):
        at = int(unlike[0])
        yield f"{where}: {len(unlike)} of {len(ours)} values, first value {at}: expected {ours[at]}, got {theirs[at]}"


def _of_field(where: str, expected: object, got: object) -> Iterator[str]:
    if expected != got:
        yield f"{where}: expected {_short(expected)}, got {_short(got)}"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
