# SPDX-License-Identifier: Apache-2.0
"""What the logits of a head mean: any number of labels for a text, or one class.

Labels are rows of 1 and 0 (-1 for unknown) in both; of one class, with a single 1. What differs is
here, and nowhere else. A loss is of ONE report, so what bounds and hides its gradient, and what
that costs, is the same in both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit, softmax

DECISION_THRESHOLD = 0.5
"""The least probability of a label that is found."""


class Task(NamedTuple):
    """Arrays end in an axis of labels; those of NumPy have any axes before."""

    problem_type: str
    """What transformers calls it."""
    one_class: bool
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    """(logits, labels) of one report -> scalar."""
    loss_name: str
    activation: Callable[[jax.Array], jax.Array]
    """Logits -> probabilities."""
    probabilities: Callable[[np.ndarray], np.ndarray]
    """The same in NumPy, in its precision."""
    decide: Callable[[np.ndarray], np.ndarray]
    """Probabilities -> whether each label is found."""
    answers: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(decisions, names) -> what people are told: 0 or 1 for each label, or the class."""
    judged: Callable[[np.ndarray, np.ndarray], np.ndarray]
    """(probabilities, labels) -> the answers that can be held to what is there."""


def multilabel_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of one report over its labels; unknown labels (-1) count as 0."""
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(labels, 0))
    return jnp.mean(jnp.where(labels >= 0, losses, 0.0))


def multiclass_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of the softmax over classes of one report; unknown labels (-1) count as 0."""
    return optax.softmax_cross_entropy(logits, jnp.maximum(labels, 0).astype(logits.dtype))


def _largest(probabilities: np.ndarray) -> np.ndarray:
    """The first of the largest, and no other."""
    classes = np.arange(probabilities.shape[-1])
    return classes == probabilities.argmax(axis=-1)[..., None]


TASKS = {
    "multi-label": Task(
        problem_type="multi_label_classification",
        one_class=False,
        loss=multilabel_loss,
        loss_name="binary cross-entropy, mean over labels",
        activation=jax.nn.sigmoid,
        probabilities=expit,
        decide=lambda probabilities: probabilities >= DECISION_THRESHOLD,
        answers=lambda decisions, names: decisions.astype(int),
        judged=lambda probabilities, labels: labels >= 0,
    ),
    "multi-class": Task(
        problem_type="single_label_classification",
        one_class=True,
        loss=multiclass_loss,
        loss_name="cross-entropy over classes",
        activation=jax.nn.softmax,
        probabilities=lambda logits: softmax(logits, axis=-1),
        decide=_largest,
        answers=lambda decisions, names: names[decisions.argmax(axis=-1)],
        # Of one class, the answer is the class decided on.
        judged=lambda probabilities, labels: _largest(probabilities),
    ),
}
"""By config.data.task."""
