# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests: by hand, against scipy, and under the null."""

import time

import numpy as np
import pytest
import scipy.stats
from helpers_data import answers

from jaxdp.evaluation.metrics import classification_metrics
from jaxdp.evaluation.statistics import (
    F1_AVERAGES,
    bootstrap_scores,
    f1_scores,
    hedges_g,
    holm,
    mean_over_seeds,
    over_reports,
    over_seeds,
    percentile_interval,
    permutation_test,
)


def worse(probabilities: np.ndarray, seed: int, by: float = 0.25) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=probabilities.shape)
    return np.clip(probabilities + by * noise, 0, 1)


def test_scores_are_those_of_the_metrics_with_rows_repeated():
    labels, probabilities = answers()
    counts = np.random.default_rng(1).integers(0, 3, len(labels))
    for weights in (np.ones(len(labels), int), counts):
        rows = np.repeat(np.arange(len(labels)), weights)
        wanted = classification_metrics(probabilities[rows], labels[rows], tuple("abcd"))
        got = f1_scores(probabilities[None], labels, np.stack([weights, weights]))
        for name in F1_AVERAGES:
            assert got[name][0] == pytest.approx([wanted[name]] * 2)
        assert got["per_label"][0, 0] == pytest.approx(
            [row["f1"] for row in wanted["per_label"].values()]
        )
    assert f1_scores(probabilities[None], labels)["micro_f1"].shape == (1,)


def test_a_bootstrap_by_hand():
    """Two reports, one label: (right, missed). Resampled: both 1/4 each, or one of each 1/2."""
    labels, probabilities = np.array([[1], [1]]), np.array([[[0.9], [0.1]]])
    scores = bootstrap_scores(probabilities, labels, draws=8000)["weighted_f1"][0]
    values, counts = np.unique(scores.round(6), return_counts=True)
    assert values.tolist() == [0, 0.666667, 1]  # 2 * 1 / (2 + 1)
    assert counts / 8000 == pytest.approx([0.25, 0.5, 0.25], abs=4 * 0.5 / 8000**0.5)
    # Of one patient, both always come together.
    together = bootstrap_scores(probabilities, labels, units=np.array([7, 7]), draws=50)
    assert np.unique(together["weighted_f1"].round(6)).tolist() == [0.666667]


def test_bootstrap_is_scipys():
    labels, probabilities = answers(200)

    def statistic(rows, axis):
        rows = np.moveaxis(rows, axis, -1).astype(int)
        weights = np.stack([np.bincount(r, minlength=200) for r in rows.reshape(-1, 200)])
        return f1_scores(probabilities[None], labels, weights)["weighted_f1"][0].reshape(
            rows.shape[:-1]
        )

    theirs = scipy.stats.bootstrap(
        (np.arange(200),), statistic, n_resamples=4000, method="percentile", rng=1
    )
    ours = bootstrap_scores(probabilities[None], labels, draws=4000)["weighted_f1"][0]
    estimate = f1_scores(probabilities[None], labels)["weighted_f1"][0]
    _, low, high = percentile_interval(estimate, ours)
    # A percentile's own deviation is about sqrt(0.025 / 4000) / density(2 sigma).
    allowed = 4 * theirs.standard_error * (0.025 / 4000) ** 0.5 / 0.05
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=allowed)
    assert ours.std() == pytest.approx(theirs.standard_error, rel=0.06)


def test_the_interval_over_seeds_is_students():
    values = [0.61, 0.65, 0.60]
    mean, low, high = over_seeds(values)
    wanted = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((0.62, wanted.low, wanted.high))
    assert over_seeds([0.5]) == (0.5, -np.inf, np.inf)


def test_resampling_seeds_too_adds_their_variance():
    resampled = np.array([[0.0] * 9000, [1.0] * 9000, [2.0] * 9000])
    means = mean_over_seeds(resampled, seed=0)
    # Variance of a draw from (0, 1, 2) is 2/3; of the mean of three, 2/9.
    assert means.var() == pytest.approx(2 / 9, rel=0.05)
    assert mean_over_seeds(resampled[:1], seed=0).tolist() == [0.0] * 9000


def test_the_interval_over_reports_covers_and_separates():
    """Two equal classifiers: 0 is in about 95 of 100 intervals. A better one: it is not."""
    covered = 0
    for seed in range(60):
        labels, ours = answers(200, seed)
        theirs = worse(ours, seed + 1000)
        rng = np.random.default_rng(seed + 2000)
        swap = rng.random(len(ours)) < 0.5  # which makes them equal in expectation
        a, b = np.where(swap[:, None], [ours, theirs], [theirs, ours])
        difference, low, high = over_reports([a], [b], labels, draws=400)
        covered += low <= 0 <= high
        better, low, high = over_reports([ours, ours], [theirs, theirs], labels, draws=400)
        assert better > 0 and low > 0
    assert 51 <= covered <= 60  # 57 expected, standard deviation 1.7


def test_intervals_over_patients_are_wider_where_their_reports_agree():
    labels, probabilities = (np.repeat(x, 5, axis=0) for x in answers(60))
    patients = np.repeat(np.arange(60), 5)
    spread = [
        bootstrap_scores(probabilities[None], labels, units=u, draws=2000)["weighted_f1"].std()
        for u in (None, patients)
    ]
    assert spread[1] / spread[0] == pytest.approx(5**0.5, rel=0.15)


def test_a_permutation_test_by_hand():
    """One label, three reports that only ours gets right: of 8 swaps, those with all three on one
    side are as extreme: p = 1/4."""
    labels = np.ones((3, 1), int)
    ours, theirs = np.full((1, 3, 1), 0.9), np.full((1, 3, 1), 0.1)
    difference, p = permutation_test(ours, theirs, labels, permutations=8000)
    assert difference == 1.0 and p == pytest.approx(0.25, abs=4 * (0.1875 / 8000) ** 0.5)
    same, p = permutation_test(ours, ours, labels, permutations=99)
    assert same == 0 and p == 1
    # One patient: both swaps are as extreme.
    assert permutation_test(ours, theirs, labels, units=np.zeros(3), permutations=99)[1] == 1


def test_permutation_test_is_scipys():
    labels, ours = answers(10, seed=3)
    theirs = worse(ours, 4, by=0.6)
    sides = np.stack([ours, theirs])

    def statistic(a, b, axis):
        """a, b: [..., 10] numbers of the rows of `rows` that stand on each side."""
        rows = sides.reshape(20, -1)
        shape = a.shape[:-1]
        pairs = zip(a.reshape(-1, 10), b.reshape(-1, 10), strict=True)
        values = [
            np.subtract(*f1_scores(np.stack([rows[i], rows[j]]), labels)["weighted_f1"])
            for i, j in pairs
        ]
        return np.reshape(values, shape)

    exact = scipy.stats.permutation_test(
        (np.arange(10), np.arange(10, 20)),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    difference, p = permutation_test(ours[None], theirs[None], labels, permutations=20_000)
    assert difference == pytest.approx(exact.statistic)
    assert 0.02 < exact.pvalue < 0.98
    assert p == pytest.approx(exact.pvalue, abs=4 * 0.5 / 20_000**0.5)


def null_rejections(units_given: bool, simulations: int = 300) -> int:
    """How often p <= 0.05 for two sides of which neither is better: 25 patients with 4 reports
    that all go the same way."""
    rejected = 0
    for seed in range(simulations):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.integers(0, 2, (25, 3)), 4, axis=0)
        right = np.repeat(rng.random((2, 25, 3)) < 0.7, 4, axis=1)
        sides = np.where(right, labels, 1 - labels).astype(float)[:, None]
        units = np.repeat(np.arange(25), 4) if units_given else None
        _, p = permutation_test(*sides, labels, units=units, permutations=199, seed=seed)
        rejected += p <= 0.05
    return rejected


def test_the_permutation_test_has_its_size_under_the_null_and_the_wrong_one_has_not():
    most, least = scipy.stats.binom(300, 0.05).ppf([0.999, 0.001])
    assert least <= null_rejections(units_given=True) <= most
    assert null_rejections(units_given=False) > most  # swaps reports that are not independent


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_holm_keeps_the_chance_of_any_false_rejection():
    p = np.random.default_rng(0).random((4000, 6))
    any_rejected = np.mean([min(holm(row)) <= 0.05 for row in p])
    assert any_rejected == pytest.approx(1 - (1 - 0.05 / 6) ** 6, abs=4 * 0.0035)
    assert (p.min(1) <= 0.05).mean() > 0.2  # without correction


def test_effect_size_by_hand():
    # Means 2 and 5, variance 1 on both sides, 4 degrees of freedom: 3 (1 - 3 / 15).
    assert hedges_g([4, 5, 6], [1, 2, 3]) == pytest.approx(2.4)
    assert hedges_g([0.5], [0.4]) is None and hedges_g([1, 1], [2, 2]) is None


def test_twelve_members_are_resampled_in_time():
    labels, probabilities = answers(400)
    members = np.stack([worse(probabilities, i) for i in range(12)])
    began = time.process_time()
    scores = bootstrap_scores(members, labels, draws=10_000)
    assert scores["weighted_f1"].shape == (12, 10_000)
    assert time.process_time() - began < 30
