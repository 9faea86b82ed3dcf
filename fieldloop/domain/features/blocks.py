"""A window cut into blocks of steps, and sums of neighbouring ones, added in the same order whatever N is."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import between

FIRST: Final = 0  # axis of blocks, [B, N, C], so that ONNX adds them in turn


def by_block(values: Var, length: int, size: int, steps: int) -> Var:
    """Return [B, N, C], sums over each of the last `size` blocks of so many steps, at least two, of [N, C, T].

    Steps come first, so that they are added in turn whatever N and C are (docs/adr/0040): there are several blocks.
    """
    kept = op.transpose(between(values, length - steps * size, length), perm=[2, 0, 1])
    shape = op.concat([op.const(np.array([size, steps])), part(op.shape(values), 0, 2)], axis=0)
    apart = op.transpose(op.reshape(kept, shape), perm=[1, 0, 2, 3])
    return op.reduce_sum(apart, op.const(np.array([FIRST])), keepdims=0)


def runs(values: Var, size: int, count: int, axes: Sequence[int] = (FIRST,)) -> Var:
    """Return sums of `count` neighbours along axes of length `size`; along several at once, of diagonals."""
    if count == 1:
        return values
    half = count // 2
    halves, left = runs(values, size, half, axes), size - 2 * half + 1
    sums = op.add(part(halves, 0, left, axes), part(halves, half, half + left, axes))
    if count % 2 == 0:
        return sums
    return op.add(part(sums, 0, left - 1, axes), part(values, 2 * half, 2 * half + left - 1, axes))


def part(values: Var, start: int, stop: int, axes: Sequence[int] = (FIRST,)) -> Var:
    """Return a part of some axes, the same of each."""
    first, behind = (op.const(np.full(len(axes), bound)) for bound in (start, stop))
    return op.slice(values, first, behind, op.const(np.array(axes)))
