"""Figures of classifiers and of anomaly scores, against scikit-learn's and by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from fieldloop.domain.metrics import anomaly, auc, average_precision, classification, probabilities

SCORES = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=60)


@given(SCORES)
def test_ranking_figures(rows: list[tuple[bool, int]]) -> None:
    """AUC and average precision are scikit-learn's, ties and all."""
    truth, score = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], np.float64)
    if truth.any() and not truth.all():
        assert auc(truth, score) == pytest.approx(reference.roc_auc_score(truth, score))
    if truth.any():
        assert average_precision(truth, score) == pytest.approx(reference.average_precision_score(truth, score))


def test_one_class_alone_cannot_be_ranked() -> None:
    """Without both there is no figure, and no error."""
    one = np.ones(3, dtype=bool)
    assert np.isnan(auc(one, np.arange(3.0)))
    assert np.isnan(average_precision(~one, np.arange(3.0)))


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_of_a_classifier(classes: int) -> None:
    """All of them are scikit-learn's."""
    random = np.random.default_rng(classes)
    shares = random.dirichlet(np.ones(classes), 200)
    truth = np.array([random.choice(classes, p=share) for share in shares])
    found, answer = classification(truth.astype(np.float32), shares), shares.argmax(axis=1)
    average = "binary" if classes == 2 else "macro"
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, shares))
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, answer))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, answer))
    assert found["f1"] == pytest.approx(reference.f1_score(truth, answer, average=average))
    ranked = shares[:, 1] if classes == 2 else shares
    assert found["auc"] == pytest.approx(reference.roc_auc_score(truth, ranked, multi_class="ovr"))


def test_both_forms_of_a_prediction() -> None:
    """One column is the second class's probability; several begin with the code."""
    np.testing.assert_allclose(probabilities(np.array([[0.2]], np.float32)), [[0.8, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(probabilities(np.array([[2, 0.1, 0.2, 0.7]], np.float32)), [[0.1, 0.2, 0.7]], rtol=1e-6)


def test_figures_of_alarms() -> None:
    """Alarms begin at 1; where nobody knows the truth, their share counts alone."""
    truth, score = np.array([1, 1, 0, 0, np.nan], np.float32), np.array([1.0, 0.5, 1.5, 0.1, 2.0], np.float32)
    found = anomaly(truth, score, 0.9)
    assert found["alarm_share"] == pytest.approx(0.6)
    assert found["alarm_excess"] == pytest.approx(0.5)
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 0.5, 0.5)
    unknown = anomaly(np.full(5, np.nan, np.float32), score, 0.9)
    assert unknown["alarm_share"] == pytest.approx(0.6)
    assert np.isnan(unknown["average_precision"])
