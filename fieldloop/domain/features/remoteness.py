"""How far the last value is from all that the window has seen before it."""

from typing import Final

import spox.opset.ai.onnx.v17 as op

from fieldloop.domain.features.cleaned import Cleaned, number
from fieldloop.domain.features.columns import Features, per_channel

MOST: Final = 1e6  # ranges; also where the others do not differ, so that any change is far
_LEAST_RANGE: Final = 1e-30


def remoteness(window: Cleaned) -> list[Features]:
    """Return `remote`: how far the last value is from the nearest before it, as a share of the range of these.

    A value beyond all others is as remote as one in a hole between them. NaN where it is missing, or all before it are.
    """
    extent = op.sub(window.highest_before, window.lowest_before)
    known = op.mul(op.add(extent, window.last), number(0.0))  # of infinities and NaN, NaN
    share = op.min([op.div(window.nearest_before, op.max([extent, number(_LEAST_RANGE)])), number(MOST)])
    return per_channel({"remote": op.add(share, known)})
