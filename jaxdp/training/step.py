# SPDX-License-Identifier: Apache-2.0
"""One training step as one jitted function: the un-noised sum never leaves it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.dp.clipping import ClipDiagnostics


class TrainState(NamedTuple):
    """Everything a step changes; checkpointed whole. The noise key is inside `optimizer`."""

    adapters: Any
    optimizer: Any


class LabelledData(NamedTuple):
    """The training reports on the device."""

    reports: Packed
    """Token ids, hidden states or features, as the stage needs them."""
    labels: jax.Array
    """[rows, num_labels] int8: 1, 0, or -1 for unknown."""


def multilabel_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of one report over its labels; unknown labels (-1) count as 0."""
    losses = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(labels, 0))
    return jnp.mean(jnp.where(labels >= 0, losses, 0.0))


def make_train_step(
    gradient_sum: Callable[..., tuple[Any, ClipDiagnostics]],
    optimizer: optax.GradientTransformation,
    buckets: Buckets,
) -> Callable[..., tuple[TrainState, ClipDiagnostics]]:
    """The step of one stage, to be jitted by the caller.

    Args:
        gradient_sum: (adapters, frozen, values, lengths, labels, is_padding=) -> (sum,
            diagnostics), as made by `dp.clipped_gradient_sum`.
        optimizer: starts with the release (`dp.add_noise_and_average`).
        buckets: the shapes that plans are made of.

    Returns:
        step(state, frozen, data, plan) -> (state, diagnostics [capacity]). The number of
        microbatches is data for the program, not shape: one compilation serves every step.
    """

    def step(state: TrainState, frozen, data: LabelledData, plan):
        def microbatch(start, rows, width, total):
            index = jax.lax.dynamic_slice(plan.rows, (start,), (rows,))
            values, lengths = data.reports.gather(index, width)
            labels = data.labels[jnp.maximum(index, 0)]
            part, diagnostics = gradient_sum(
                state.adapters, frozen, values, lengths, labels, is_padding=index < 0
            )
            return jax.tree.map(jnp.add, total, part), diagnostics

        total = jax.tree.map(jnp.zeros_like, state.adapters)
        diagnostics = ClipDiagnostics(*(jnp.zeros(plan.rows.shape) for _ in range(2)))
        for i, (width, rows) in enumerate(zip(buckets.widths, buckets.rows, strict=True)):

            def body(k, carry, i=i, width=width, rows=rows):
                total, diagnostics = carry
                start = plan.starts[i] + k * rows
                total, part = microbatch(start, rows, width, total)
                diagnostics = jax.tree.map(
                    lambda whole, d: jax.lax.dynamic_update_slice(whole, d, (start,)),
                    diagnostics,
                    part,
                )
                return total, diagnostics

            total, diagnostics = jax.lax.fori_loop(0, plan.counts[i], body, (total, diagnostics))
        updates, optimizer_state = optimizer.update(total, state.optimizer, state.adapters)
        adapters = optax.apply_updates(state.adapters, updates)
        return TrainState(adapters, optimizer_state), diagnostics

    return step
