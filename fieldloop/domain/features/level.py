"""Where the values lie: the last step's value, mean, least and greatest."""

from spox import Var

from fieldloop.domain.features.cleaned import Cleaned


def level(window: Cleaned) -> dict[str, Var]:
    """Return `last`, `mean`, `min` and `max`, [N, C] float64 each."""
    return {"last": window.last, "mean": window.mean, "min": window.lowest, "max": window.highest}
