"""Figures of numbers, classifiers and anomaly scores, against scikit-learn's and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from fieldloop.domain.metrics import Tally, auc, judge, probabilities, tally
from tests.domain.use_cases import TARGETS, made_up, use_case

SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60)


@given(SCORES)
def test_ranking_figures(rows: list[tuple[bool, int]]) -> None:
    """AUC and average precision are scikit-learn's, ties and all."""
    truth, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.float64)
    found = judge(use_case("class"), truth.astype(np.float32), (score / 8).astype(np.float32)[:, None])
    if truth.any() and not truth.all():
        assert auc(truth, score) == pytest.approx(reference.roc_auc_score(truth, score))
        assert found["auc"] == pytest.approx(reference.roc_auc_score(truth, score))
    if truth.any():
        assert found["average_precision"] == pytest.approx(reference.average_precision_score(truth, score))


def test_one_class_alone_cannot_be_ranked() -> None:
    """Without both there is no figure, and no error; what can be said is."""
    found = judge(use_case("class"), np.zeros(3, np.float32), np.full((3, 1), 0.2, np.float32))
    assert np.isnan([found["auc"], found["average_precision"], found["f1"]]).all()
    assert (found["accuracy"], found["balanced_accuracy"]) == (1, 1)
    assert found["log_loss"] == pytest.approx(-np.log(0.8))


def test_figures_of_numbers() -> None:
    """They are scikit-learn's; a truth that does not vary is met or it is not."""
    truth, predicted = made_up("value", 300)
    found = judge(use_case("value"), truth, predicted)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(truth, predicted), rel=1e-6)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(truth, predicted), rel=1e-6)
    assert found["r2"] == pytest.approx(reference.r2_score(truth, predicted), rel=1e-6)
    flat = np.full(3, 1, np.float32)
    assert judge(use_case("value"), flat, flat[:, None])["r2"] == 1
    assert judge(use_case("value"), flat, flat[:, None] + 1)["r2"] == -np.inf


@pytest.mark.parametrize("kind", ["class", "classes"])
def test_figures_of_a_classifier(kind: str) -> None:
    """All of them are scikit-learn's."""
    truth, predicted = made_up(kind, 200)
    shares = probabilities(predicted)
    shares /= shares.sum(axis=1, keepdims=True)  # exactly, as scikit-learn wants it
    found, answer = judge(use_case(kind), truth, predicted), shares.argmax(axis=1)
    average = "binary" if kind == "class" else "macro"
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, shares))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, answer))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, answer))
    assert found["f1"] == pytest.approx(reference.f1_score(truth, answer, average=average))
    ranked = shares[:, 1] if kind == "class" else shares
    assert found["auc"] == pytest.approx(reference.roc_auc_score(truth, ranked, multi_class="ovr"))


def test_both_forms_of_a_prediction() -> None:
    """One column is the second class's probability; several begin with the code."""
    np.testing.assert_allclose(probabilities(np.array([[0.2]], np.float32)), [[0.8, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(probabilities(np.array([[2, 0.1, 0.2, 0.7]], np.float32)), [[0.1, 0.2, 0.7]], rtol=1e-6)


def test_figures_of_alarms() -> None:
    """Alarms begin at 1; where nobody knows the truth, their share counts alone."""
    truth, score = np.array([1, 1, 0, 0, np.nan], np.float32), np.array([[1.0], [0.5], [1.5], [0.1], [2.0]], np.float32)
    found = judge(use_case("anomaly"), truth, score)
    assert found["alarm_share"] == pytest.approx(0.6)
    assert found["alarm_excess"] == pytest.approx(0.5)
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    unknown = judge(use_case("anomaly"), np.full(5, np.nan, np.float32), score)
    assert unknown["alarm_share"] == pytest.approx(0.6)
    assert np.isnan(unknown["average_precision"])


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("bins", [None, 64])
def test_weighted_groups_are_their_windows(kind: str, bins: int | None) -> None:
    """Groups drawn twice or not at all have the figures of their windows repeated or left out; binned ones nearly."""
    truth, predicted = made_up(kind, 1000)
    group = np.arange(1000) // 100
    weights = np.array([[1, 2, 0, 1, 0, 3, 1, 1, 0, 1], np.ones(10)], np.float64)
    found = tally(use_case(kind), truth, predicted, group, 10, bins).weighted(weights).figures()
    for row, each in enumerate(weights):
        again = np.repeat(np.arange(1000), each[group].astype(int))
        wanted = judge(use_case(kind), truth[again], predicted[again])
        for name, value in wanted.items():
            loose = bins is not None and name in ("auc", "average_precision")
            assert found[name][row] == pytest.approx(value, abs=0.03 if loose else 1e-9), name


def test_figures_of_each_group() -> None:
    """Unweighted, each group has its own figures."""
    truth, predicted = made_up("classes", 400)
    group = np.arange(400) % 4
    counted: Tally = tally(use_case("classes"), truth, predicted, group, 4)
    for name, values in counted.figures().items():
        for code in range(4):
            mine = group == code
            assert values[code] == pytest.approx(judge(use_case("classes"), truth[mine], predicted[mine])[name])
