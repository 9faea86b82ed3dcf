"""One battery for every algorithm and kind of target it suits: it learns, converts, and comes back from its files."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter

from fieldloop.domain.errors import TrainingError
from fieldloop.domain.head import Head
from fieldloop.domain.metrics import auc
from fieldloop.domain.recipe import Candidate
from fieldloop.domain.recipe.candidates import SUITED
from tasks import candidates
from tasks.candidates import Problem
from tasks.candidates.learner import row_weights
from tasks.heads import calibration, thresholds

ROWS, SEED = 1_200, 3
NAMES = ("wind.last", "wind.mean", "heat.excess", "wind.std")
GAPS = ("heat.last", "wind.excess", "heat.excess", "heat.gap")
PROBLEMS = {
    "value": Problem("value", last_value="wind.last"),
    "binary": Problem("probability", 2),
    "class": Problem("classes", 3),
    "anomaly": Problem("score"),
}
SMALL: dict[str, dict[str, Any]] = {
    "xgboost": {"trees": 20},
    "hist_boosting": {"trees": 20},
    "random_forest": {"trees": 10},
    "extra_trees": {"trees": 10},
    "isolation_forest": {"trees": 20},
    "neighbours": {"rows": 300},
}
CASES = [(name, kind) for kind in PROBLEMS for name in SUITED["class" if kind == "binary" else kind]]  # type: ignore[index]

Matrix = NDArray[np.float32]


def candidate(algorithm: str, **settings: Any) -> Candidate:
    """A small candidate."""
    return TypeAdapter(Candidate).validate_python({"algorithm": algorithm, **SMALL.get(algorithm, {}), **settings})


def rows(kind: str, seed: int = SEED) -> tuple[Matrix, Matrix]:
    """Features with gaps and a constant column, and a target that follows from them; a few rows are far out."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(ROWS, 4)).astype(np.float32)
    features[:, 1] = features[:, 0] + random.normal(scale=0.1, size=ROWS)
    features[:, 3] = 1
    value = features[:, 0] + features[:, 2] * 0.5
    target = value if kind == "value" else np.digitize(value, [0.2] if kind == "binary" else [-0.3, 0.6])
    if kind == "anomaly":
        features[:10, 1] += 8
        target = np.arange(ROWS) < 10
    features[random.random((ROWS, 4)) < 0.03] = np.nan
    return features, target.astype(np.float32)


def head(of: Problem, learner: candidates.Learner, features: Matrix) -> Head:
    """The plain head of a learner."""
    return Head(of.kind, thresholds=thresholds(learner.raw(features), 0.99)) if of.kind == "score" else Head(of.kind)


@pytest.mark.parametrize(("algorithm", "kind"), CASES)
def test_battery(algorithm: str, kind: str) -> None:
    """The graph gives what the native model gives, for gaps too, and so does the model read back from its files."""
    of, (features, target) = PROBLEMS[kind], rows(kind)
    learner = candidates.fit(candidate(algorithm), of, NAMES, features, target, SEED)
    model = candidates.Model(learner, head(of, learner, features))
    raw = learner.raw(features)
    predicted = model.predict(features)
    assert predicted.dtype == np.float32
    assert predicted.shape == (ROWS, 4 if kind == "class" else 1)
    assert np.isfinite(predicted).all()

    graph = candidates.convert(model, len(NAMES))
    converted = onnxruntime.InferenceSession(graph.SerializeToString())
    out = converted.get_outputs()[0].name
    (answer,) = converted.run([out], {converted.get_inputs()[0].name: features})
    np.testing.assert_allclose(answer.reshape(raw.shape), raw, rtol=2e-5, atol=2e-5)

    files = candidates.dump(model)
    assert tuple(sorted(files)) == tuple(sorted(candidates.file_names(algorithm)))
    np.testing.assert_array_equal(candidates.restore(of, files).predict(features), predicted)
    shares = candidates.importances(model, NAMES)
    assert not shares or sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "algorithm",
    ["xgboost", "hist_boosting", "random_forest", "extra_trees", "logistic", "linear_discriminant", "neighbours"],
)
def test_classifiers_beat_the_majority(algorithm: str) -> None:
    """On rows that it has not seen, every classifier tells the two classes apart."""
    of, (features, target), (others, truth) = PROBLEMS["binary"], rows("binary"), rows("binary", seed=SEED + 1)
    learner = candidates.fit(candidate(algorithm), of, NAMES, features, target, SEED)
    assert auc(truth == 1, learner.raw(others)[:, 1].astype(np.float64)) > 0.9


@pytest.mark.parametrize("algorithm", ["isolation_forest", "pca"])
def test_anomalies_are_found_without_labels(algorithm: str) -> None:
    """Rows off the pattern score highest, and the threshold leaves the promised share of training rows below it."""
    of, (features, target) = PROBLEMS["anomaly"], rows("anomaly")
    learner = candidates.fit(candidate(algorithm), of, NAMES, features, target, SEED)
    score = candidates.Model(learner, head(of, learner, features)).predict(features)[:, 0]
    assert np.mean(score >= 1) == pytest.approx(0.01, abs=0.002)
    assert auc(target == 1, score.astype(np.float64)) > 0.9


def test_a_value_in_a_hole_is_as_new_as_one_beyond() -> None:
    """Each by its own limit, the larger share of the two counts; what is missing is not new."""
    learner = candidates.fit(candidate("novelty", gap=4), PROBLEMS["anomaly"], GAPS, *rows("anomaly"), SEED)
    model = candidates.Model(learner, Head("score", thresholds=(0.5, 4)))
    features = np.array([[0, 0.25, 0, 6], [0, 1, 0.5, np.nan], [np.nan] * 4], np.float32)
    assert model.predict(features)[:, 0].tolist() == [1.5, 2, 0]
    graph = onnxruntime.InferenceSession(candidates.convert(model, 4).SerializeToString())
    np.testing.assert_array_equal(graph.run(None, {"input": features})[0], learner.raw(features))
    with pytest.raises(TrainingError, match="the oddity of a channel, got none: take the family `patterns`"):
        candidates.fit(candidate("novelty", gap=4, pattern=2), PROBLEMS["anomaly"], GAPS, *rows("anomaly"), SEED)
    with pytest.raises(TrainingError, match="the unrest of a channel, got none: take the family `unrest`"):
        candidates.fit(candidate("novelty", gap=4, unrest=1), PROBLEMS["anomaly"], GAPS, *rows("anomaly"), SEED)
    with pytest.raises(TrainingError, match="the gap of a channel, got none: take the family `novelty`"):
        candidates.fit(candidate("novelty", gap=4), PROBLEMS["anomaly"], NAMES, *rows("anomaly"), SEED)


def test_limits_that_are_none_count_for_nothing() -> None:
    """What has no limit needs no family; without any limit there is nothing to tell by."""
    wanted = candidate("novelty", limit=None, remote=0.03, unrest=0.5)
    names = ("wind.unrest", "heat.remote", "wind.remote")
    learner = candidates.fit(wanted, PROBLEMS["anomaly"], names, *rows("anomaly"), SEED)
    features = np.array([[0.25, 0.5, 0.125], [0, 0, np.nan]], np.float32)
    assert learner.raw(features).tolist() == [[0.5, 0.25], [0, 0]]
    with pytest.raises(ValueError, match="`novelty` has no limit at all"):
        candidate("novelty", limit=None)


@pytest.mark.parametrize("statistic", ["q", "t2", "both"])
def test_statistics_of_components(statistic: str) -> None:
    """Q sees what leaves the plane, T² what runs away within it, both see either."""
    of, features = PROBLEMS["anomaly"], rows("anomaly")[0][10:]
    learner = candidates.fit(
        candidate("pca", explained=0.8, statistic=statistic), of, NAMES, features, features[:, 0], SEED
    )
    model = candidates.Model(learner, head(of, learner, features))
    off, within = model.predict(np.array([[-2, 2, 0, 1], [6, 6, 0, 1]], np.float32))[:, 0]
    assert (off > 1) == (statistic in ("q", "both"))
    assert (within > 1) == (statistic in ("t2", "both"))


@pytest.mark.parametrize(
    "of", [Head("value"), Head("probability"), Head("probability", slope=0.5, bias=(0.1, -0.1)), Head("classes"),
           Head("classes", slope=2, bias=(0.0, 1.0)), Head("score", thresholds=(-0.5, -0.7))]
)  # fmt: skip
def test_head_in_numpy_and_in_the_graph(of: Head) -> None:
    """The same answer either way, for shares of 0 and 1 too."""
    raw = np.array([[0, 1], [1, 0], [0.25, 0.75], [0.5, 0.5]], np.float32)
    raw = -raw if of.kind == "score" else raw
    graph = of.graph(2)
    if graph is None:
        np.testing.assert_array_equal(of.apply(raw), raw)
        return
    (answer,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"raw": raw})
    np.testing.assert_allclose(answer, of.apply(raw), rtol=1e-6, atol=1e-7)


def test_calibration_mends_bold_probabilities() -> None:
    """Shares that are too sure of themselves come out as often right as they say."""
    random = np.random.default_rng(0)
    honest = random.uniform(0.05, 0.95, 20_000)
    truth = (random.random(20_000) < honest).astype(np.float32)
    bold = 1 / (1 + np.exp(-3 * np.log(honest / (1 - honest)) - 1))
    shares = np.stack([1 - bold, bold], axis=1).astype(np.float32)
    slope, bias = calibration(shares, truth)
    assert slope == pytest.approx(1 / 3, abs=0.02)
    calibrated = Head("probability", slope=slope, bias=bias).apply(shares)[:, 0]
    assert np.abs(calibrated - honest).max() < 0.03


def test_rare_classes_weigh_the_same() -> None:
    """Nine of one and one of the other weigh as much in all, and 1 on the mean."""
    weights = row_weights(np.array([0] * 9 + [1], np.float32))
    assert weights[:9].sum() == pytest.approx(weights[9:].sum())
    assert weights.mean() == pytest.approx(1)


def test_balanced_weights_find_the_rare_class() -> None:
    """A forest that must not pass over the rare class finds more of it."""
    of, (features, _) = PROBLEMS["binary"], rows("binary")
    rare = (np.nan_to_num(features[:, 0]) > 1.8).astype(np.float32)
    noisy = np.where(np.random.default_rng(1).random(ROWS) < 0.5, rare, 0).astype(np.float32)
    found = {}
    for weights in ("equal", "balanced"):
        learner = candidates.fit(candidate("logistic", weights=weights), of, NAMES, features, noisy, SEED)
        found[weights] = np.count_nonzero(learner.raw(features)[rare == 1, 1] > 0.5)
    assert found["balanced"] > found["equal"]


@pytest.mark.parametrize(
    ("algorithm", "kind", "target", "said"),
    [
        ("ridge", "value", [1.0] * 20, "the target is 1 in all 20 training rows"),
        ("xgboost", "class", [0.0, 2.0] * 10, "class 1 has no training window"),
        ("mean", "value", [], "expected rows to train on, got none"),
        ("last_value", "value", [0.0, 1.0] * 10, "expected a feature wind.last, got other"),
    ],
)
def test_what_cannot_be_learnt(algorithm: str, kind: str, target: list[float], said: str) -> None:
    """A target that stands still, a class that never occurs, no rows, and no feature to repeat are named."""
    values = np.array(target, np.float32)
    with pytest.raises(TrainingError, match=said):
        candidates.fit(candidate(algorithm), PROBLEMS[kind], ("other",), values[:, None], values, SEED)
