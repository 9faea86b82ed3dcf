"""How the variance is spread over frequencies."""

from functools import reduce
from itertools import pairwise

import numpy as np
import spox.opset.ai.onnx.v17 as op
from spox import Var

from fieldloop.domain.features.cleaned import Cleaned, between
from fieldloop.domain.features.columns import Features, per_channel


def spectrum(window: Cleaned) -> list[Features]:
    """Return each octave's share of the variance: `band1` one cycle a window, `band2` two to three, `band4` to seven.

    Of the deviations from the mean, 0 in gaps, without a taper; NaN where nothing varies. `DFT` transforms each channel
    of each window by itself.
    """
    borders = octaves(window.length)
    power = _power(window)
    edges = pairwise([*borders, window.length // 2 + 1])
    bands = [window.total(between(power, first, end), end - first) for first, end in edges]
    total = reduce(op.add, bands)
    shares = {f"band{border}": op.div(band, total) for border, band in zip(borders, bands, strict=True)}
    return per_channel(shares)


def octaves(length: int) -> tuple[int, ...]:
    """Return the lowest frequency of each octave, cycles a window of `length` steps."""
    return tuple(2**octave for octave in range((length // 2).bit_length()))


def _power(window: Cleaned) -> Var:
    """[N, C, T // 2 + 1] squared amplitudes; each but the highest of an even T stands for its negative too."""
    real = op.unsqueeze(window.deviation, op.const(np.array([3], dtype=np.int64)))
    amplitude = op.dft(real, axis=2, onesided=1)
    both = op.reduce_sum(op.mul(amplitude, amplitude), op.const(np.array([3], dtype=np.int64)), keepdims=0)
    times = np.full(window.length // 2 + 1, 2.0)
    if window.length % 2 == 0:
        times[-1] = 1.0
    return op.mul(both, op.const(times))
