# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise as an optax transform: here, or in `secure_noise`, a gradient sum is released."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .clipping import clip_and_sum
from .mechanism import SubsampledGaussian

DRAWS = 4
"""Normal draws per noise value. One float32 draw takes only 2^23 values and never exceeds 5.42
standard deviations, so with little noise a value beyond that proves that a report was there, with
a probability that is not small beside delta. The sum of four, halved, is as normal, reaches 10.8,
and leaves no invertible grid (Holohan and Braghin, 2021)."""


class NoiseState(NamedTuple):
    """Noise is a pure function of these, so a resumed step repeats its noise exactly; and arrays,
    so that the states of several trainings can be stacked and updated by one `jax.vmap`."""

    key: jax.Array
    """Secret typed PRNG key of this mechanism; never changes, never reused elsewhere."""
    step: jax.Array
    """Number of releases so far, int32."""
    stddev: jax.Array
    """The mechanism's `stddev`; never changes."""


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """N(0, 1) with tails: see DRAWS. Fused by XLA; some 40 ns a value on a CPU core."""
    draws = [jax.random.normal(k, shape, dtype) for k in jax.random.split(key, DRAWS)]
    return sum(draws[1:], draws[0]) / DRAWS**0.5


def require_wide(leaf: jax.Array) -> None:
    """TypeError for a sum whose rounding would be a coarse grid that shows through the noise."""
    if leaf.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"a clipped sum must be float32 or float64, not {leaf.dtype}")


def add_noise_and_average(
    mechanism: SubsampledGaussian, key: jax.Array
) -> optax.GradientTransformation:
    """Releases a clipped sum: (sum + N(0, stddev^2)) / expected_batch_size.

    Guarantee (add/remove one unit): one update is one Gaussian mechanism of the given
    noise_multiplier (Dwork and Roth, 2014, A.1), provided the incoming sum has sensitivity
    l2_clip_norm (`clipping.sum_clipped`). Noise is independent between coordinates, leaves and
    steps, and the same for the same (key, step), whatever the number of devices or microbatches.
    The divisor is configuration: neither the sum's size nor the number of reports drawn leaks
    through it (an empty draw is a zero sum, and is noised like any other).

    Put it first in an `optax.chain`; whatever follows is post-processing.

    The guarantee is against an adversary who cannot guess the key, and up to floating point. One
    key serves all steps: Threefry is a block cipher, so folding in different steps gives different
    subkeys for certain; among all that are split off these two coincide with probability below 1e-5
    at 10^7 of them. But a Threefry-2x32 key has 64 bits and JAX does not claim it to be
    cryptographic: someone with the whole adapter history and 2^64 trials could find it.
    `secure_noise.SecureNoise` lifts both limits.

    Args:
        mechanism: the stage's numbers; noise_multiplier 0 adds exact zeros.
        key: typed PRNG key (`jax.random.key`) from OS entropy, secret, used for nothing else.

    Raises:
        TypeError: (update) a leaf is narrower than float32.
    """

    def init(params):
        del params
        # A copy: the caller's key must survive donation of the optimizer state.
        return NoiseState(jnp.copy(key), jnp.zeros((), jnp.int32), jnp.asarray(mechanism.stddev))

    def update(updates, state, params=None):
        del params
        leaves, treedef = jax.tree.flatten(updates)
        for leaf in leaves:
            require_wide(leaf)
        # One draw for all leaves: a generator for each would take most of a step's compilation.
        ends = np.cumsum([leaf.size for leaf in leaves])
        step_key = jax.random.fold_in(state.key, state.step)
        wide = jnp.result_type(*leaves)
        stddev = state.stddev.astype(wide)
        noise = stddev * standard_normal(step_key, (int(ends[-1]),), wide)
        released = [
            (leaf + part.reshape(leaf.shape)).astype(leaf.dtype) / mechanism.expected_batch_size
            for leaf, part in zip(leaves, jnp.split(noise, ends[:-1]), strict=True)
        ]
        return jax.tree.unflatten(treedef, released), state._replace(step=state.step + 1)

    return optax.GradientTransformation(init, update)


def dp_aggregate(mechanism: SubsampledGaussian, key: jax.Array) -> optax.GradientTransformation:
    """Clip + sum + noise in one transform, for anyone's own loop: per-report gradients in.

    Takes updates with leaves [B, ...], one row per report of ONE whole logical batch, and gives
    the noisy mean. Same guarantee as `add_noise_and_average`, with the clipping included. Batches
    that do not fit in memory are summed in microbatches by `clipping.clipped_gradient_sum` first,
    and go to `add_noise_and_average` once.
    """
    return optax.chain(clip_and_sum(mechanism.l2_clip_norm), add_noise_and_average(mechanism, key))
