# SPDX-License-Identifier: Apache-2.0
"""How sure a difference between two sides is."""

import numpy as np
import scipy.stats

from jaxdp.evaluation.metrics import DECISION_THRESHOLD

Interval = tuple[float, float, float]
"""Estimate, lower and upper end."""


def over_seeds(values: list[float], confidence: float = 0.95) -> Interval:
    """Mean of one value per seed, with Student's interval: what other seeds would give.

    One seed tells nothing of others: its interval is (-inf, inf).
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -np.inf, np.inf
    error = scipy.stats.sem(values) * scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return mean, mean - float(error), mean + float(error)


def over_reports(
    ours: list[np.ndarray],
    theirs: list[np.ndarray],
    labels: np.ndarray,
    *,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Difference of weighted F1, averaged over seeds, with a paired bootstrap interval: what the
    same models would score on other test reports.

    Args:
        ours, theirs: per seed, probabilities [n, num_labels] for the same reports.
        labels: [n, num_labels]: 1, 0, or -1 for unknown.
        draws: resampled test sets.
    """
    weights = np.random.default_rng(0).multinomial(
        len(labels), np.full(len(labels), 1 / len(labels)), draws
    )
    weights = np.vstack([np.ones_like(weights[:1]), weights])
    difference = np.mean([weighted_f1(p, labels, weights) for p in ours], axis=0) - np.mean(
        [weighted_f1(p, labels, weights) for p in theirs], axis=0
    )
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(difference[1:], [tail, 100 - tail])
    return float(difference[0]), float(low), float(high)


def weighted_f1(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 averaged over labels by support, as in `evaluation.metrics`, with reports counted
    `weights` [..., n] times: [...]."""
    known, decided = labels >= 0, probabilities >= DECISION_THRESHOLD
    positive = labels == 1
    hits = weights @ (decided & positive)
    support = weights @ positive
    decisions = weights @ (decided & known)
    f1 = 2 * hits / np.maximum(support + decisions, 1)
    return (f1 * support).sum(-1) / np.maximum(support.sum(-1), 1)
