"""Which pictures a candidate's run shows, by what the recipe predicts; `tasks.plots` draws them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.metrics import probabilities
from fieldloop.domain.recipe.target import Anomaly, Class
from tasks import candidates, plots
from tasks.fitting import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictures(fitted: Fitted, unit: str) -> dict[str, "Figure"]:
    """Return the pictures of a candidate's held-out windows, by artifact path; `unit` is the target's."""
    found, truth, predicted = fitted.found, fitted.truth, fitted.predicted
    end_us, device = found.end_us[fitted.test], found.device[fitted.test]
    drawn = {}
    match fitted.recipe.target:
        case Class():
            drawn = _of_classes(fitted)
        case Anomaly():
            drawn["scores"] = plots.scores(end_us, predicted[:, 0], truth, device, found.devices)
            known = ~np.isnan(truth)
            drawn |= _ranked({"anomalous": (truth[known] > 0, predicted[known, 0].astype(np.float64))})
        case _:
            quantity = f"{fitted.recipe.target_name}, {unit}"
            drawn["truth_and_prediction"] = plots.truth_and_prediction(truth, predicted[:, 0], quantity)
            drawn["residuals"] = plots.residuals(end_us, predicted[:, 0] - truth, quantity)
    if shares := candidates.importances(fitted.model, fitted.materials.names):
        drawn["importance"] = plots.importance(shares)
    return {f"plots/{name}.png": picture for name, picture in drawn.items()}


def _of_classes(fitted: Fitted) -> dict[str, "Figure"]:
    shares, codes, names = probabilities(fitted.predicted), fitted.truth.astype(np.int64), fitted.recipe.classes
    curves = {name: (codes == code, shares[:, code]) for code, name in enumerate(names)}
    if len(names) == 2:  # the first is the second's mirror image
        del curves[names[0]]
    return {
        "confusion": plots.confusion(codes, shares.argmax(axis=1), names),
        "calibration": plots.calibration(curves),
        **_ranked(curves),
    }


def _ranked(curves: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> dict[str, "Figure"]:
    """The ranking of those classes that some windows are of, and others not."""
    both = {name: curve for name, curve in curves.items() if curve[0].any() and not curve[0].all()}
    return {"ranking": plots.ranking(both)} if both else {}
