# SPDX-License-Identifier: Apache-2.0
"""Metrics per label and averaged; unknown labels are left out."""

from typing import Any

import numpy as np

from jaxdp.models.tasks import DECISION_THRESHOLD, TASKS

from .statistics import F1_AVERAGES, f1_scores

# scikit-learn takes a second to import, which a start need not wait for: where it is used.

ONE_CLASS = ("accuracy", "balanced_accuracy")
"""Of one class per text, besides: accuracy, which micro F1 is there, and the mean recall of the
classes that there are."""
RELIABILITY_BINS = 15


def classification_metrics(
    probabilities: np.ndarray,
    labels: np.ndarray,
    label_names: tuple[str, ...],
    task: str = "multi-label",
) -> dict[str, Any]:
    """F1 (weighted by support, micro, macro) and, per label, F1, AUROC, support and decisions;
    over all labels together, log loss and expected calibration error, see `reliability`.

    Of one class per text also ONE_CLASS; log loss is of the true class, AUROC against all others.

    Args:
        probabilities: [n, num_labels] in [0, 1].
        labels: [n, num_labels] int: 1, 0, or negative for unknown.
        label_names: [num_labels].
        task: see `models.tasks.TASKS`; it decides, too.

    Returns:
        JSON-ready. A label with no positives keeps its row, with F1 0 and support 0 (it weighs
        nothing in weighted_f1, and counts as 0 in macro_f1); its AUROC, like that of a label with
        no negatives, is None.
    """
    from sklearn.metrics import log_loss, roc_auc_score

    one_class = TASKS[task].one_class
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities must be finite")
    per_label, known_all = {}, labels >= 0
    decisions = TASKS[task].decide(probabilities)
    found = {name: score[0] for name, score in f1_scores(decisions[None], labels).items()}
    for i, name in enumerate(label_names):
        known = known_all[:, i]
        truth, predicted = labels[known, i], decisions[known, i]
        both_classes = len(np.unique(truth)) == 2
        per_label[name] = {
            "f1": float(found["per_label"][i]),
            "auroc": float(roc_auc_score(truth, probabilities[known, i])) if both_classes else None,
            "support": int((truth == 1).sum()),
            "predicted": int(predicted.sum()),
            "labelled": int(known.sum()),
        }
    bins = reliability(probabilities, labels, task)
    apart = np.abs(bins[:, 1] - bins[:, 2]).sum()
    lost = labels == 1 if one_class else known_all
    p = probabilities[lost].astype(np.float32)  # 0 and 1 count as float32's next to them
    result = {
        **{name: float(found[name]) for name in F1_AVERAGES},
        "log_loss": float(log_loss(labels[lost], p, labels=[0, 1])) if len(p) else 0.0,
        "expected_calibration_error": float(apart / max(bins[:, 0].sum(), 1)),
        "labels_without_positives": [n for n, r in per_label.items() if r["support"] == 0],
        "reports": int(len(labels)),
        "threshold": None if one_class else DECISION_THRESHOLD,
        "per_label": per_label,
    }
    if one_class:
        result["accuracy"] = float((labels.argmax(axis=1) == decisions.argmax(axis=1)).mean())
        result["balanced_accuracy"] = float(found["balanced_accuracy"])
    return result


def scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Over all labels, what `classification_metrics` gives for its task: F1_AVERAGES, ONE_CLASS."""
    return {n: metrics[n] for n in (*F1_AVERAGES, *(n for n in ONE_CLASS if n in metrics))}


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, task: str = "multi-label"
) -> np.ndarray:
    """[RELIABILITY_BINS, 3]: of the answers to known labels (of one class: the class decided on)
    whose probability is in each of so many equal parts of [0, 1], the number, the sum of their
    probabilities, and how many are positive.

    Args:
        probabilities: [..., n, num_labels] in [0, 1].
        labels: [n, num_labels]: 1, 0, or negative for unknown.
        task: see `models.tasks.TASKS`.
    """
    labels = np.broadcast_to(labels, probabilities.shape)
    judged = TASKS[task].judged(probabilities, labels)
    p, positive = probabilities[judged].astype(np.float64), labels[judged] == 1
    bins = np.minimum((p * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    counts = (np.bincount(bins, weights, RELIABILITY_BINS) for weights in (None, p, positive))
    return np.stack(list(counts), axis=1)
