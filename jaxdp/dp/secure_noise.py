# SPDX-License-Identifier: Apache-2.0
"""Noise from a cryptographic generator on the host, added exactly: `config.privacy.secure_noise`.

The released quantity is that of `noise.add_noise_and_average`, (sum + noise) / expected batch; what
differs is where the noise comes from, and that it is added in integers.
"""

import dataclasses
import hashlib
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import ndtri

from .mechanism import SubsampledGaussian
from .noise import require_wide

_LIMIT = 2**30
"""Sums are held within +-_LIMIT grid steps; with the noise they stay within int32."""


class Draw(NamedTuple):
    """The noise of one step, an argument of the jitted step."""

    step: np.int32
    noise: Any
    """Tree of int32, in grid steps."""


class SecureState(NamedTuple):
    step: jax.Array
    """Number of releases so far, int32."""


@dataclasses.dataclass(frozen=True)
class SecureNoise:
    """Gaussian noise on a grid, for one mechanism; a pure function of (secret, step).

    Guarantee (add/remove one unit): one `release` is post-processing of one Gaussian mechanism of
    the given noise_multiplier, also in floating point, provided the incoming sum has sensitivity
    l2_clip_norm. Proof: the sum s is rounded to multiples of `grid`, so its sensitivity is at most
    `sensitivity` (each of d coordinates moves by at most half a grid step, on either side). Noise
    N of noise_multiplier times that is rounded to the grid as well, and round(s) + round(N) =
    round(round(s) + N), computed without error in integers. So no bit of the result tells more
    than a Gaussian mechanism does, which plain float addition cannot promise (Mironov, 2012;
    Haney et al., 2022). What remains: N is drawn from 64 random bits by the inverse of the normal
    distribution function, to float64 accuracy, and never exceeds 9.2 standard deviations
    (probability 2^-64); and float32 rounding inside the clipped sum (`clipping.sum_clipped`).

    Randomness: SHAKE-256 (FIPS 202) keyed by 256 bits, squeezed anew for each (step, leaf).

    Attributes:
        mechanism: the stage's numbers.
        secret: 32 bytes of OS entropy, or derived from such; used for nothing else.
        like: tree with the leaves' shapes.

    Raises:
        ValueError: the secret has another length, or the noise does not fit int32, which takes a
            noise_multiplier of 16,000 at a million coordinates.
    """

    mechanism: SubsampledGaussian
    secret: bytes = dataclasses.field(repr=False)
    like: Any = dataclasses.field(repr=False)

    def __post_init__(self):
        if len(self.secret) != 32:
            raise ValueError(f"the secret must have 32 bytes, not {len(self.secret)}")
        if self.mechanism.noise_multiplier * self._root_size > 2**24:
            raise ValueError("noise_multiplier * sqrt(coordinates) must be at most 2^24")

    @property
    def _root_size(self) -> float:
        return math.sqrt(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.like)))

    @property
    def grid(self) -> float:
        """Width of a grid step, in gradient units: a power of two.

        So fine that rounding adds 0.1 to 0.2 % to the sensitivity, unless noise_multiplier times
        sqrt(d) is beyond 65,000: then as fine as int32 allows.
        """
        clip_norm = self.mechanism.l2_clip_norm
        finest = max(clip_norm / self._root_size * 2**-10, self.mechanism.stddev * 2**-26)
        return 2.0 ** math.ceil(math.log2(finest))

    @property
    def sensitivity(self) -> float:
        """Of the rounded sum, L2."""
        return self.mechanism.l2_clip_norm + self.grid * self._root_size

    def draw(self, step: int) -> Draw:
        """The noise of `step`, on the host; about 5 ms per 100,000 values on a CPU core."""
        leaves, treedef = jax.tree.flatten(self.like)
        steps = self.mechanism.noise_multiplier * self.sensitivity / self.grid
        noise = [
            np.rint(steps * standard_normal(self.secret, step, i, math.prod(leaf.shape)))
            .astype(np.int32)
            .reshape(leaf.shape)
            for i, leaf in enumerate(leaves)
        ]
        return Draw(np.int32(step), jax.tree.unflatten(treedef, noise))

    def release(self) -> optax.GradientTransformationExtraArgs:
        """The transform; its `update` takes `draw=`, the `Draw` of that very step.

        The draw of another step gives NaN, so noise cannot be used twice unnoticed.
        """

        def init(params):
            del params
            return SecureState(jnp.zeros((), jnp.int32))

        def update(clipped_sum, state, params=None, *, draw: Draw, **extra_args):
            del params, extra_args
            chex.assert_trees_all_equal_shapes(clipped_sum, draw.noise)

            def one(leaf, noise):
                require_wide(leaf)
                # Dividing by a power of two and rounding are exact; so is adding integers.
                rounded = jnp.clip(jnp.round(leaf / self.grid), -_LIMIT, _LIMIT).astype(jnp.int32)
                released = (rounded + noise).astype(leaf.dtype)
                released *= self.grid / self.mechanism.expected_batch_size
                return jnp.where(draw.step == state.step, released, jnp.nan)

            return jax.tree.map(one, clipped_sum, draw.noise), SecureState(state.step + 1)

        # optax's type has no place for an argument that must be there.
        return optax.GradientTransformationExtraArgs(init, update)  # ty: ignore[invalid-argument-type]


def standard_normal(secret: bytes, step: int, leaf: int, size: int) -> np.ndarray:
    """[size] float64 draws of N(0, 1): a pure function of the arguments, independent between them.

    One bit is the sign, 63 bits place the value in the lower half of the distribution, where
    float64 is finest.
    """
    place = step.to_bytes(8, "little") + leaf.to_bytes(8, "little")
    words = np.frombuffer(hashlib.shake_256(secret + place).digest(8 * size), "<u8")
    tail = ndtri(((words >> np.uint64(1)) + 0.5) * 2.0**-64)
    return np.where(words & np.uint64(1), tail, -tail)
