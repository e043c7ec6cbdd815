# SPDX-License-Identifier: Apache-2.0
"""One score for each canary: the higher, the more it looks as if training had used it.

Scores are made of what the adversary sees and knows, never of who is in. A gradient attack sees
every noisy mean that the stage releases (all intermediate adapters tell as much) and knows all
honest reports: the adversary of DP-SGD's analysis. An input attack asks the final model only.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdp.training.step import TrainState
from jaxdp.training.trainer import StageTrainer

from .canaries import GradientCanaries

FIRST_MOMENT = {"adam": ("mu", 0.9, 0.1), "sgd": ("trace", 0.9, 1.0)}
"""Optimizer -> its running sum of releases: m = decay * m + weight * release (`make_optimizer`)."""


def gradient_scores(
    trainer: StageTrainer, honest: StageTrainer, canaries: GradientCanaries
) -> np.ndarray:
    """Trains to the end; [m] alignments of the releases with each canary's direction.

    Each step's honest part is known, hence taken away. What is left aligns with a canary that is in
    by C / batch, and with all others by nothing but noise. Steps are averaged with weights
    1 / variance over the canaries: equal ones for equal noise, and a step that lacks its noise
    outweighs the rest.

    Args:
        trainer: of the attacked training.
        honest: the same without canaries and without noise.
        canaries: rows of the trainer's data, in it or not.
    """
    state = trainer.initial_state
    name, decay, weight = FIRST_MOMENT[trainer.stage.settings.optimizer]

    def moment(state: TrainState) -> np.ndarray:
        moments = optax.tree_utils.tree_get(state.optimizer, name)
        return np.asarray(moments["classifier"]["kernel"][...], np.float64)

    alignments = []
    before = moment(state)
    for step in range(trainer.stage.steps):
        # A copy, because steps consume their state.
        twin = TrainState(state.adapters, honest.initial_state.optimizer)
        known, _ = honest.step(jax.tree.map(jnp.copy, twin), 0, honest.plan(0))
        state, _ = trainer.step(state, step, trainer.plan(step))
        after = moment(state)
        surplus = (after - decay * before - moment(known)) / weight
        alignments.append(canaries.alignment(surplus))
        before = after
    weights = 1 / np.var(alignments, axis=1)
    return np.average(alignments, axis=0, weights=weights)


def input_scores(trainer: StageTrainer, labels: np.ndarray) -> np.ndarray:
    """Trains to the end; [m] the negative loss of the final model on each validation report."""
    state = trainer.after(trainer.stage.steps)
    p = trainer.validation_probabilities(state).astype(np.float64)
    right = np.where(labels == 1, p, 1 - p)
    return np.log(np.maximum(right, 1e-30)).mean(axis=1)
