"""Order statistics."""

from fieldloop.domain.features.cleaned import SHARES, Cleaned
from fieldloop.domain.features.columns import Features


def quantiles(window: Cleaned) -> list[Features]:
    """Return `q10`, `q25`, `median`, `q75` and `q90`."""
    return window.ranked(*tuple(SHARES)[1:-1])
