# SPDX-License-Identifier: Apache-2.0
"""Multi-label metrics, per label and averaged; unknown labels are left out."""

from typing import Any

import numpy as np

# scikit-learn takes a second to import, which a start need not wait for: where it is used.

DECISION_THRESHOLD = 0.5
RELIABILITY_BINS = 15


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: tuple[str, ...],
    threshold: float = DECISION_THRESHOLD,
) -> dict[str, Any]:
    """F1 (weighted by support, micro, macro) and, per label, F1, AUROC, support and decisions;
    over all labels together, log loss and expected calibration error, see `reliability`.

    Args:
        probabilities: [n, num_labels] in [0, 1].
        labels: [n, num_labels] int: 1, 0, or negative for unknown.
        label_names: [num_labels].
        threshold: a label is predicted where its probability is at least this.

    Returns:
        JSON-ready. A label with no positives keeps its row, with F1 0 and support 0 (it weighs
        nothing in weighted_f1, and counts as 0 in macro_f1); its AUROC, like that of a label with
        no negatives, is None.
    """
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    per_label, known_all = {}, labels >= 0
    decisions = probabilities >= threshold
    for i, name in enumerate(label_names):
        known = known_all[:, i]
        truth, predicted = labels[known, i], decisions[known, i]
        both_classes = len(np.unique(truth)) == 2
        per_label[name] = {
            "f1": _f1(truth, predicted),
            "auroc": float(roc_auc_score(truth, probabilities[known, i])) if both_classes else None,
            "support": int((truth == 1).sum()),
            "predicted": int(predicted.sum()),
            "labelled": int(known.sum()),
        }
    bins = reliability(probabilities, labels)
    f1 = np.array([row["f1"] for row in per_label.values()])
    support = np.array([row["support"] for row in per_label.values()])
    return {
        "weighted_f1": float(f1 @ support / max(support.sum(), 1)),
        "micro_f1": _f1(labels[known_all], decisions[known_all]),
        "macro_f1": float(f1.mean()),
        "log_loss": _log_loss(labels[known_all], probabilities[known_all]),
        "expected_calibration_error": float(
            np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1)
        ),
        "labels_without_positives": [n for n, r in per_label.items() if r["support"] == 0],
        "reports": int(len(labels)),
        "threshold": threshold,
        "per_label": per_label,
    }


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[RELIABILITY_BINS, 3]: of the answers to known labels whose probability is in each of so many
    equal parts of [0, 1], the number, the sum of their probabilities, and how many are positive.

    Args:
        probabilities: [..., num_labels] in [0, 1].
        labels: as many: 1, 0, or negative for unknown.
    """
    known = labels >= 0
    p, positive = probabilities[known].astype(np.float64), labels[known] == 1
    bins = np.minimum((p * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    counts = (np.bincount(bins, weights, RELIABILITY_BINS) for weights in (None, p, positive))
    return np.stack(list(counts), axis=1)


def _log_loss(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """0 where nothing is labelled; a probability of 0 or 1 counts as float32's next to it."""
    from sklearn.metrics import log_loss

    if not len(truth):
        return 0.0
    return float(log_loss(truth, probabilities.astype(np.float32), labels=[0, 1]))


def _f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """0 where nothing is labelled, or nothing positive and nothing predicted."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predicted, zero_division=0)) if len(truth) else 0.0
