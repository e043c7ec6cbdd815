# SPDX-License-Identifier: Apache-2.0
"""The trainings that an audit attacks: the real one, and deliberately broken ones.

Breaking is done from outside, by handing `StageTrainer` another mechanism than the claim is made
for, or a secret whose noise is not always added. No setting of a training leads here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxdp import dp
from jaxdp.dp.mechanism import CLIP_NORM_RANGE
from jaxdp.training.randomness import RunSecret


class HalfSilentSecret(RunSecret):
    """Its releases forget the noise at every other step."""

    def release(self, mechanism, stage, like, *, secure):
        release, draw = super().release(mechanism, stage, like, secure=secure)

        def update(total, state, params=None, **extra):
            noisy, after = release.update(total, state, params, **extra)
            bare = jax.tree.map(lambda leaf: leaf / mechanism.expected_batch_size, total)
            silent = state.step % 2 == 1
            return jax.tree.map(lambda a, b: jnp.where(silent, a, b), bare, noisy), after

        return optax.GradientTransformationExtraArgs(release.init, update), draw


@dataclasses.dataclass(frozen=True)
class Variant:
    """One training to attack."""

    name: str  # for tables and plots
    claimed: dp.SubsampledGaussian | None  # what the epsilon is computed from; None claims nothing
    trained: dp.SubsampledGaussian | None  # what the trainer is given; None trains without privacy
    secret: type[RunSecret] = RunSecret  # what draws its noise

    @property
    def broken(self) -> bool:
        return self.claimed != self.trained or self.secret is not RunSecret


def all_variants(
    mechanism: dp.SubsampledGaussian, small_epsilon: float, delta: float
) -> tuple[Variant, ...]:
    """The training of `mechanism`; also at a small epsilon, without privacy, broken three ways."""
    quieter = mechanism.replace(noise_multiplier=mechanism.noise_multiplier / 2)
    # A bound that no gradient reaches, under noise of the same standard deviation.
    _, huge = CLIP_NORM_RANGE
    unclipped = mechanism.replace(l2_clip_norm=huge, noise_multiplier=mechanism.stddev / huge)
    small = dp.calibrate_noise(mechanism, small_epsilon, delta)
    return (
        Variant("as trained", mechanism, mechanism),
        Variant("noise halved", mechanism, quieter),
        Variant("noise every other step", mechanism, mechanism, HalfSilentSecret),
        Variant("no clipping", mechanism, unclipped),
        Variant("small epsilon", small, small),
        Variant("no privacy", None, None),
    )
