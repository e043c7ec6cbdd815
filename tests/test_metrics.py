# SPDX-License-Identifier: Apache-2.0
"""Metrics against hand-computed cases and scikit-learn's own averages."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from jaxdp.evaluation.metrics import classification_metrics, reliability


def test_hand_computed_case():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]])
    probabilities = np.array([[0.9, 0.1, 0.2], [0.4, 0.8, 0.7], [0.6, 0.5, 0.1], [0.1, 0.2, 0.3]])
    metrics = classification_metrics(probabilities, labels, ("a", "b", "never"))
    # a: 1 hit, 1 miss, 1 false alarm; b: 2 hits (0.5 counts as positive)
    assert metrics["per_label"]["a"]["f1"] == pytest.approx(0.5)
    assert metrics["per_label"]["b"]["f1"] == pytest.approx(1.0)
    assert metrics["weighted_f1"] == pytest.approx((0.5 * 2 + 1.0 * 2) / 4)
    assert metrics["macro_f1"] == pytest.approx(0.5)
    assert metrics["micro_f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metrics["per_label"]["a"]["auroc"] == pytest.approx(0.75)
    never = metrics["per_label"]["never"]
    assert (never["support"], never["f1"], never["auroc"], never["predicted"]) == (0, 0.0, None, 1)
    assert metrics["labels_without_positives"] == ["never"]
    json.dumps(metrics, allow_nan=False)


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < [0.5, 0.3, 0.1, 0.05, 0.2]).astype(int)
    probabilities = np.clip(0.4 * labels + 0.6 * rng.random((300, 5)), 0, 1)
    metrics = classification_metrics(probabilities, labels, tuple("abcde"))
    for average in ("weighted", "micro", "macro"):
        expected = f1_score(labels, probabilities >= 0.5, average=average)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    f1 = [row["f1"] for row in metrics["per_label"].values()]
    assert f1 == pytest.approx(list(f1_score(labels, probabilities >= 0.5, average=None)))
    aurocs = [row["auroc"] for row in metrics["per_label"].values()]
    assert aurocs == pytest.approx(list(roc_auc_score(labels, probabilities, average=None)))


def test_f1_of_known_labels_agrees_with_scikit_learn():
    rng = np.random.default_rng(2)
    labels = rng.integers(-1, 2, (300, 4))
    probabilities = np.clip(0.4 * labels + 0.6 * rng.random((300, 4)), 0, 1)
    metrics = classification_metrics(probabilities, labels, tuple("abcd"))
    known, decided = labels >= 0, probabilities >= 0.5
    expected = [f1_score(labels[k, i], decided[k, i]) for i, k in enumerate(known.T)]
    assert [row["f1"] for row in metrics["per_label"].values()] == pytest.approx(expected)
    assert metrics["micro_f1"] == pytest.approx(f1_score(labels[known], decided[known]))
    assert metrics["macro_f1"] == pytest.approx(np.mean(expected))
    support = (labels == 1).sum(axis=0)
    assert metrics["weighted_f1"] == pytest.approx(np.average(expected, weights=support))


def test_calibration_of_a_case_by_hand():
    labels = np.array([[1, 0], [0, 0], [1, -1]])
    probabilities = np.array([[0.99, 0.02], [0.95, 0.5], [1.0, 0.0]])
    bins = reliability(probabilities, labels)
    np.testing.assert_allclose(bins[[0, 7, 14]], [[1, 0.02, 0], [1, 0.5, 0], [3, 2.94, 2]])
    assert bins.sum() == pytest.approx(5 + 3.46 + 2)
    metrics = classification_metrics(probabilities, labels, ("a", "b"))
    assert metrics["expected_calibration_error"] == pytest.approx((0.02 + 0.5 + 0.94) / 5)
    known = [0.99, 0.02, 0.95, 0.5, 1 - 2**-23]
    assert metrics["log_loss"] == pytest.approx(log_loss([1, 0, 0, 0, 1], known), rel=1e-5)


def test_calibration_tells_sure_from_right():
    rng = np.random.default_rng(1)
    truth = rng.random((20_000, 1))
    labels = (rng.random(truth.shape) < truth).astype(int)
    logits = np.log(truth / (1 - truth))

    def error(temperature):
        answers = 1 / (1 + np.exp(-logits / temperature))
        return classification_metrics(answers, labels, ("a",))["expected_calibration_error"]

    # 15 bins of 1,333 answers scatter by 0.011 each: 0.009 expected of the mean distance.
    assert error(1) < 0.015 < 0.06 < min(error(0.5), error(2))


def test_unknown_labels_are_left_out():
    labels = np.array([[1], [-1], [0], [-1]])
    probabilities = np.array([[0.9], [0.9], [0.1], [0.1]])
    metrics = classification_metrics(probabilities, labels, ("a",))
    assert metrics["per_label"]["a"] == {
        "f1": 1.0, "auroc": 1.0, "support": 1, "predicted": 1, "labelled": 2,
    }  # fmt: skip
    assert metrics["weighted_f1"] == metrics["micro_f1"] == 1.0


def test_only_unknown_labels_give_no_score():
    metrics = classification_metrics(np.array([[0.9]]), np.array([[-1]]), ("a",))
    assert metrics["per_label"]["a"]["labelled"] == 0
    assert metrics["weighted_f1"] == 0.0


def test_probabilities_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        classification_metrics(np.array([[np.nan]]), np.array([[1]]), ("a",))
