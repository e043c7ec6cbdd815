# SPDX-License-Identifier: Apache-2.0
"""How sure a score or a difference of two is: what other test reports and other seeds would give.

Of one class per text, give what was decided, as 0 and 1, in place of probabilities.

Resampling is by matrix products: F1 is a function of three counts per label, and counts of a
resampled test set are weights times indicator matrices.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.stats

from jaxdp.models.tasks import DECISION_THRESHOLD

Interval = tuple[float, float, float]  # estimate, lower and upper end

F1_AVERAGES = ("weighted_f1", "micro_f1", "macro_f1")

_CHUNK = 2**23  # weights held at once: 32 MB


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean of one value per seed, with Student's 95 % interval: what other seeds would give.

    One seed tells nothing of others: its interval is (-inf, inf).
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -np.inf, np.inf
    error = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
    return mean, mean - float(error), mean + float(error)


def over_reports(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], labels: np.ndarray, draws: int = 2000
) -> Interval:
    """Difference of weighted F1, averaged over seeds, with a paired bootstrap interval of 95 %:
    what the same models would score on other test reports.

    Args:
        ours, theirs: per seed, probabilities [n, num_labels] for the same reports.
        labels: [n, num_labels]: 1, 0, or -1 for unknown.
        draws: resampled test sets.
    """
    both = np.stack([*ours, *theirs])
    estimate = f1_scores(both, labels)["weighted_f1"]
    resampled = bootstrap_scores(both, labels, draws=draws)["weighted_f1"]
    sign = np.array([1 / len(ours)] * len(ours) + [-1 / len(theirs)] * len(theirs))
    return percentile_interval(sign @ estimate, sign @ resampled)


def finite(interval: Iterable[float]) -> list[float | None]:
    """For JSON: None for an end that is infinite."""
    return [x if np.isfinite(x) else None for x in interval]


def f1_scores(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """F1 as in `evaluation.metrics`, by F1_AVERAGES and "per_label", and "balanced_accuracy", of
    reports that count `weights` times.

    Args:
        probabilities: [members, n, num_labels].
        labels: [n, num_labels]: 1, 0, or negative for unknown.
        weights: [draws, n], small whole numbers; None: once.

    Returns:
        [members, draws], or without weights [members]; "per_label" has num_labels as last axis.
    """
    counts = np.ones((1, len(labels))) if weights is None else weights
    scores = _f1(*(_count(counts, x) for x in _indicators(probabilities, labels)))
    return scores if weights is not None else {k: v[:, 0] for k, v in scores.items()}


def bootstrap_scores(
    probabilities: np.ndarray,
    labels: np.ndarray,
    *,
    units: np.ndarray | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """`f1_scores` on `draws` resampled test sets, the same for every member: units [n] are drawn
    with replacement, as many as there are, each with all of its reports; None: every report is one.
    """
    units, parts = _numbered(units, len(labels)), []
    for size, rng in _chunks(draws, len(labels), seed):
        drawn = rng.integers(0, units.max() + 1, (size, units.max() + 1))
        drawn += np.arange(size)[:, None] * (units.max() + 1)
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        parts.append(f1_scores(probabilities, labels, counts[:, units]))
    return {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}


def percentile_interval(estimate: float, resampled: np.ndarray) -> Interval:
    """The middle 95 % of [draws] resampled values, around the estimate itself."""
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(estimate), float(low), float(high)


def mean_over_seeds(resampled: np.ndarray, seed: int) -> np.ndarray:
    """[draws] means of [seeds, draws] scores, of seeds that are resampled in each draw: what other
    reports AND other seeds would give.

    Few seeds say little of others: resampled, S of them show only (S - 1) / S of their variance.
    """
    chosen = np.random.default_rng(seed).integers(0, len(resampled), resampled.shape)
    return np.take_along_axis(resampled, chosen, axis=0).mean(0)


def permutation_test(
    ours: np.ndarray,
    theirs: np.ndarray,
    labels: np.ndarray,
    *,
    units: np.ndarray | None = None,
    permutations: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """(difference of weighted F1 averaged over seeds, two-sided p) of a paired permutation test.

    Null hypothesis: for each unit it is as likely that the two sides' answers are the other way
    round. A unit's answers are swapped as a whole, for all of its reports, labels and seeds. It is
    about THESE trained models on other reports; other seeds are another source of chance.

    p = (1 + permutations at least as extreme) / (1 + permutations), hence valid, and never 0.

    Args:
        ours, theirs: [seeds, n, num_labels] probabilities for the same reports.
        labels, units: as in `bootstrap_scores`.

    Raises:
        ValueError: the sides have different shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"paired sides must have one shape, not {ours.shape} and {theirs.shape}")
    units = _numbered(units, len(labels))
    (*a, positive), (*b, _) = (_indicators(side, labels) for side in (ours, theirs))
    both, support = (a, b), positive.sum(1, keepdims=True)
    once = np.ones((1, len(labels)))

    def difference(a, b):
        scores = (_f1(*side, support)["weighted_f1"].mean(0) for side in (a, b))
        return np.subtract(*scores)

    totals = [[_count(once, x) for x in side] for side in both]
    observed = difference(*totals)[0]
    extreme = 0
    for size, rng in _chunks(permutations, len(labels), seed):
        swapped = rng.integers(0, 2, (size, units.max() + 1))[:, units]
        moved = [_count(swapped, b - a) for a, b in zip(*both, strict=True)]
        found = difference(
            [t + m for t, m in zip(totals[0], moved, strict=True)],
            [t - m for t, m in zip(totals[1], moved, strict=True)],
        )
        # Ties count, whatever rounding makes of them.
        extreme += int((np.abs(found) >= abs(observed) - 1e-9).sum())
    return float(observed), (1 + extreme) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: with all below alpha rejected, the chance of any false
    rejection is at most alpha, however the tests depend on each other."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def hedges_g(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Difference of means over the pooled standard deviation between seeds, with Hedges' (1981)
    correction for few of them; None where there is no such deviation."""
    freedom = len(ours) + len(theirs) - 2
    if freedom < 1:
        return None
    squares = sum(float(np.var(side)) * len(side) for side in (ours, theirs))
    if squares == 0:
        return None
    difference = float(np.mean(ours) - np.mean(theirs))
    return difference / (squares / freedom) ** 0.5 * (1 - 3 / (4 * freedom - 1))


def _indicators(probabilities, labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(right positives, decisions for positive [members, n, L], positives [1, n, L]), float32."""
    decided, positive = (probabilities >= DECISION_THRESHOLD) & (labels >= 0), labels == 1
    return tuple(x.astype(np.float32) for x in (decided & positive, decided, positive[None]))


def _numbered(units: np.ndarray | None, n: int) -> np.ndarray:
    """[n] the number of each report's unit, from 0 without gaps; None: every report's own."""
    return np.arange(n) if units is None else np.unique(units, return_inverse=True)[1]


def _count(weights: np.ndarray, indicators: np.ndarray) -> np.ndarray:
    """[members, draws, L] weighted sums over reports. float32 counts exactly, up to 2^24."""
    counted = np.tensordot(weights.astype(np.float32), indicators, axes=(1, 1))
    return np.moveaxis(counted, 1, 0).astype(np.float64)


def _f1(hits, decided, support) -> dict[str, np.ndarray]:
    """F1 from counts [members, draws, L]; 0 where nothing is positive and nothing decided."""

    def ratio(part, whole):
        return part / np.maximum(whole, 1)

    per_label = ratio(2 * hits, support + decided)
    return {
        "weighted_f1": ratio((per_label * support).sum(-1), support.sum(-1)),
        "micro_f1": ratio(2 * hits.sum(-1), (support + decided).sum(-1)),
        "macro_f1": per_label.mean(-1),
        "balanced_accuracy": ratio(ratio(hits, support).sum(-1), (support > 0).sum(-1)),
        "per_label": per_label,
    }


def _chunks(draws: int, width: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    """Sizes that add up to `draws`, few enough for memory at `width` numbers each."""
    rng = np.random.default_rng(seed)
    most = max(1, _CHUNK // width)
    for begin in range(0, draws, most):
        yield min(most, draws - begin), rng
