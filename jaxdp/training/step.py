# SPDX-License-Identifier: Apache-2.0
"""One training step as one jitted function: the un-noised sum never leaves it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from jaxdp.data.batching import Buckets, Plan
from jaxdp.data.packed import Packed
from jaxdp.dp.clipping import ClipDiagnostics

from .mesh import DATA, WHOLE, gathered


class TrainState(NamedTuple):
    """Everything a step changes; checkpointed whole. A noise key is inside `optimizer`."""

    adapters: Any
    optimizer: Any


class LabelledData(NamedTuple):
    """The training reports on the device."""

    reports: Packed  # token ids, hidden states or features, as the stage needs them
    labels: Any  # [rows, num_labels] int8: 1, 0, or -1 for unknown; or any tree of [rows, ...]
    center: jax.Array | None = None
    """[H], or 0: taken from what `reports` hold, which are features then. None takes nothing."""


def plain_gradient_sum(loss_fn: Callable[..., jax.Array], l2_clip_norm: jax.Array | float):
    """The non-private peer of `dp.clipped_gradient_sum`: one gradient of the summed loss.

    Same signature; nothing is clipped, norms are not computed and reported as 0.
    """
    del l2_clip_norm

    def gradient_sum(params, *batch, is_padding):
        def total(params):
            losses = jax.vmap(loss_fn, in_axes=(None,) + (0,) * len(batch))(params, *batch)
            losses = jnp.where(is_padding, 0.0, losses.reshape(is_padding.shape))
            return jnp.sum(losses), losses

        gradient, losses = jax.grad(total, has_aux=True)(params)
        return gradient, ClipDiagnostics(losses, jnp.zeros_like(losses))

    return gradient_sum


def make_share_sum(
    loss_fn: Callable[..., jax.Array],
    gradient_sum: Callable[..., Callable[..., tuple[Any, ClipDiagnostics]]],
    buckets: Buckets,
) -> Callable[..., tuple[Any, ClipDiagnostics]]:
    """The gradient sum of one device's share of a logical batch; arguments as `make_train_step`.

    Returns:
        share_sum(adapters, frozen, data, plan, l2_clip_norm, device=, devices=) -> (sum like
        adapters, diagnostics [capacity], zero where another device's reports stand).

        Device number `device` of `devices` takes every devices-th microbatch of the plan, counted
        over all buckets, so that shares differ by at most one microbatch, padding is that of one
        device, and every microbatch is summed as on one device.
    """

    def share_sum(
        adapters, frozen, data: LabelledData, plan: Plan, l2_clip_norm, *, device, devices
    ):
        def loss(adapters, *report):
            return loss_fn(adapters, frozen, *report)

        summed = gradient_sum(loss, l2_clip_norm)
        total = jax.tree.map(jnp.zeros_like, adapters)
        diagnostics = ClipDiagnostics(*(jnp.zeros(plan.rows.shape) for _ in range(2)))
        before = jnp.cumsum(plan.counts) - plan.counts
        for i, (width, slots, together) in enumerate(buckets.shapes):
            first = (device - before[i]) % devices
            # A trip count, not a shape: how full a bucket is differs from step to step.
            trips = (plan.counts[i] - first + devices - 1) // devices

            def microbatch(j, carry, i=i, width=width, slots=slots, together=together, first=first):
                start = plan.starts[i] + (first + j * devices) * slots
                index = jax.lax.dynamic_slice(plan.rows, (start,), (slots,))
                values, lengths = data.reports.gather(index, width, together)
                if data.center is not None:
                    values = values - data.center
                labels = jax.tree.map(lambda x: x[jnp.maximum(index, 0)], data.labels)
                labels = jax.tree.map(lambda x: x.reshape(*lengths.shape, *x.shape[1:]), labels)
                part = summed(adapters, values, lengths, labels, is_padding=index < 0)
                total, diagnostics = carry

                def place(all_rows, new):
                    old = jax.lax.dynamic_slice(all_rows, (start,), (slots,))
                    new = jnp.where(index < 0, old, new)
                    return jax.lax.dynamic_update_slice(all_rows, new, (start,))

                total = jax.tree.map(jnp.add, total, part[0])
                return total, jax.tree.map(place, diagnostics, part[1])

            total, diagnostics = jax.lax.fori_loop(0, trips, microbatch, (total, diagnostics))
        return total, diagnostics

    return share_sum


def sum_over_devices(share_sum: Callable, mesh: Mesh, frozen_specs: Any) -> Callable:
    """(adapters, frozen, data, plan, l2_clip_norm) -> what `share_sum` gives, summed over the mesh
    axis `data`; frozen weights that are shared out are gathered first, once for the step.

    Whole microbatches are dealt out, not the rows of each: as many rounds as padding allows, no
    collective within them, and ONE all-reduce per step, of the sum and the diagnostics together.
    Rows dealt out would need n times wider microbatches, which at 64 devices hold a whole logical
    batch and pad all of it to the longest report.
    """

    def on_one_device(adapters, frozen, *arguments):
        frozen = gathered(frozen, frozen_specs)
        device, devices = jax.lax.axis_index(DATA), mesh.shape[DATA]
        share = share_sum(adapters, frozen, *arguments, device=device, devices=devices)
        flat, unravel = ravel_pytree(share)
        return unravel(jax.lax.psum(flat, DATA))

    # check_vma would transpose what a primitive without its rules (a fused attention) returns to a
    # hidden sum over devices, and so mix reports before the clip; the tests check the replication.
    return jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(WHOLE, frozen_specs, WHOLE, WHOLE, WHOLE),
        out_specs=WHOLE,
        check_vma=False,
    )


def make_train_step(
    loss_fn: Callable[..., jax.Array],
    gradient_sum: Callable[..., Callable[..., tuple[Any, ClipDiagnostics]]],
    optimizer: optax.GradientTransformation,
    buckets: Buckets,
    mesh: Mesh | None = None,
    frozen_specs: Any = WHOLE,
) -> Callable[..., tuple[TrainState, ClipDiagnostics]]:
    """The step of one stage, to be jitted by the caller.

    Args:
        loss_fn: (adapters, frozen, values, length, labels) -> scalar loss of one report; or of the
            K reports of a row of `buckets` [K], given their lengths and labels.
        gradient_sum: turns a one-report loss (params, *report) -> scalar, and a clip norm, into
            (params, *batch, is_padding=) -> (sum of gradients, diagnostics):
            `dp.clipped_gradient_sum` or `plain_gradient_sum`.
        optimizer: an `optax.chain` that starts with the release (`dp.add_noise_and_average`).
        buckets: the shapes that plans are made of.
        mesh: its axis `data` shares the microbatches; None leaves them on one device.
        frozen_specs: how the frozen weights lie on the mesh, see `mesh.frozen_specs`.

    Returns:
        step(state, frozen, data, plan, l2_clip_norm, **release) -> (state, diagnostics [capacity]).
        What the release needs besides the sum is passed on to it: `draw=` for `dp.SecureNoise`. The
        number of microbatches is data for the program, not shape: one compilation serves every
        step. Noise is drawn once for the whole sum, outside of what is done per device.

        All that members of a sweep differ in is data, too: adapters, noise key and scale, learning
        rate (in the state), what of the frozen weights was drawn at random, center, clip norm. So
        `jax.vmap` of this step over a leading axis of those trains them together.
    """
    share_sum = make_share_sum(loss_fn, gradient_sum, buckets)
    if mesh is None:
        batch_sum = partial(share_sum, device=0, devices=1)
    else:
        batch_sum = sum_over_devices(share_sum, mesh, frozen_specs)

    def step(state: TrainState, frozen, data: LabelledData, plan: Plan, l2_clip_norm, **release):
        total, diagnostics = batch_sum(state.adapters, frozen, data, plan, l2_clip_norm)
        updates, optimizer_state = optimizer.update(
            total, state.optimizer, state.adapters, **release
        )
        adapters = optax.apply_updates(state.adapters, updates)
        return TrainState(adapters, optimizer_state), diagnostics

    return step
