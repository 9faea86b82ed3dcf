"""How much of a window is there."""

from fieldloop.domain.features.cleaned import Cleaned
from fieldloop.domain.features.columns import Features, per_channel


def presence(window: Cleaned) -> list[Features]:
    """Return `count`: steps with a value that is neither missing nor masked."""
    return per_channel({"count": window.count})
