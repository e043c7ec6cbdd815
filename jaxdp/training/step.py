# SPDX-License-Identifier: Apache-2.0
"""One training step as one jitted function: the un-noised sum never leaves it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdp.data.batching import Buckets, Plan
from jaxdp.data.packed import Packed
from jaxdp.dp.clipping import ClipDiagnostics


class TrainState(NamedTuple):
    """Everything a step changes; checkpointed whole. A noise key is inside `optimizer`."""

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


def plain_gradient_sum(loss_fn: Callable[..., jax.Array]):
    """The non-private peer of `dp.clipped_gradient_sum`: one gradient of the summed loss.

    Same signature; norms are not computed and reported as 0.
    """

    def gradient_sum(params, *batch, is_padding):
        def total(params):
            losses = jax.vmap(loss_fn, in_axes=(None,) + (0,) * len(batch))(params, *batch)
            losses = jnp.where(is_padding, 0.0, losses)
            return jnp.sum(losses), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        return gradient, ClipDiagnostics(losses, jnp.zeros_like(losses))

    return gradient_sum


def make_train_step(
    loss_fn: Callable[..., jax.Array],
    gradient_sum: Callable[..., Callable[..., tuple[Any, ClipDiagnostics]]],
    optimizer: optax.GradientTransformation,
    buckets: Buckets,
) -> Callable[..., tuple[TrainState, ClipDiagnostics]]:
    """The step of one stage, to be jitted by the caller.

    Args:
        loss_fn: (adapters, frozen, values, length, labels) -> scalar loss of one report.
        gradient_sum: turns a one-report loss (params, *report) -> scalar into (params, *batch,
            is_padding=) -> (sum of gradients, diagnostics): `dp.clipped_gradient_sum` with its clip
            norm, or `plain_gradient_sum`.
        optimizer: an `optax.chain` that starts with the release (`dp.add_noise_and_average`).
        buckets: the shapes that plans are made of.

    Returns:
        step(state, frozen, data, plan, **release) -> (state, diagnostics [capacity]). What the
        release needs besides the sum is passed on to it: `draw=` for `dp.SecureNoise`. The number
        of microbatches is data for the program, not shape: one compilation serves every step.
    """

    def step(state: TrainState, frozen, data: LabelledData, plan: Plan, **release):
        summed = gradient_sum(lambda adapters, *report: loss_fn(adapters, frozen, *report))

        total = jax.tree.map(jnp.zeros_like, state.adapters)
        diagnostics = ClipDiagnostics(*(jnp.zeros(plan.rows.shape) for _ in range(2)))
        for i, (width, rows) in enumerate(zip(buckets.widths, buckets.rows, strict=True)):

            def microbatch(k, carry, i=i, width=width, rows=rows):
                start = plan.starts[i] + k * rows
                index = jax.lax.dynamic_slice(plan.rows, (start,), (rows,))
                values, lengths = data.reports.gather(index, width)
                part = summed(
                    state.adapters,
                    values,
                    lengths,
                    data.labels[jnp.maximum(index, 0)],
                    is_padding=index < 0,
                )
                place = partial(jax.lax.dynamic_update_slice, start_indices=(start,))
                total, diagnostics = carry
                return jax.tree.map(jnp.add, total, part[0]), jax.tree.map(
                    place, diagnostics, part[1]
                )

            # A trip count, not a shape: how full a bucket is differs from step to step.
            total, diagnostics = jax.lax.fori_loop(
                0, plan.counts[i], microbatch, (total, diagnostics)
            )
        updates, optimizer_state = optimizer.update(
            total, state.optimizer, state.adapters, **release
        )
        adapters = optax.apply_updates(state.adapters, updates)
        return TrainState(adapters, optimizer_state), diagnostics

    return step
