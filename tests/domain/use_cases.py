"""Recipes of each kind of target, and truth and predictions that go with them."""

import numpy as np
from numpy.typing import NDArray

from fieldloop.domain.document import load
from fieldloop.domain.recipe import Recipe
from tests.tasks.farm import TEXT

TARGETS = {
    "value": "{metric: active_power}",
    "class": "{kind: class, metric: active_power, classes: {no: 0, yes: 1}}",
    "classes": "{kind: class, metric: active_power, classes: {no: 0, maybe: 1, yes: 2}}",
    "anomaly": "{kind: anomaly, quantile: 0.9}",
}


def use_case(kind: str) -> Recipe:
    """The farm's recipe with another kind of target."""
    text = TEXT.replace("NAME", "tiny").replace("{metric: active_power}", TARGETS[kind])
    algorithm = "pca" if kind == "anomaly" else "xgboost"
    text = text[: text.index("candidates:")] + f"candidates: [{{algorithm: {algorithm}}}]\nparity: {{limit: 0.01}}\n"
    return load(Recipe, text, "r.yaml")


def made_up(kind: str, number: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Truth and predictions that have something to do with one another."""
    random = np.random.default_rng(seed)
    if kind == "value":
        truth = random.normal(5, 2, number)
        return truth.astype(np.float32), (truth + random.normal(0, 1, number)).astype(np.float32)[:, None]
    if kind == "classes":
        shares = random.dirichlet(np.ones(3), number)
        truth = np.array([random.choice(3, p=share) for share in shares])
        return truth.astype(np.float32), np.column_stack([shares.argmax(axis=1), shares]).astype(np.float32)
    share = random.random(number)
    truth = (random.random(number) < share).astype(np.float32)
    return truth, (share * (1.1 if kind == "anomaly" else 1)).astype(np.float32)[:, None]
