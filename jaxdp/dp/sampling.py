# SPDX-License-Identifier: Apache-2.0
"""Poisson sampling: who takes part in a step."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PoissonSampler:
    """Draws each step's units; a pure function of (seed, step).

    Guarantee: at every step each of `num_units` units is included independently with
    `sampling_probability` (rounded up to a multiple of 2^-53), steps are independent, and the draw
    does not depend on any data. Any step can be drawn at any time, in any order, in any process.
    This is the sampling that the add/remove accounting of `SubsampledGaussian` assumes; batches of
    fixed size or shuffled epochs are not. Randomness: Philox-4x64 (Salmon et al., 2011), a keyed
    counter-based generator of 128-bit key; statistically sound, not proven cryptographic.

    Attributes:
        seed: 128-bit secret; whoever knows it can tell who took part, so the guarantee is void.
        sampling_probability: in (0, 1]; 1 includes every unit at every step.
        num_units: units that exist, 0 <= num_units.

    Raises:
        ValueError: a field is out of range.
    """

    seed: int = dataclasses.field(repr=False)
    sampling_probability: float
    num_units: int

    def __post_init__(self):
        if not 0 <= self.seed < 2**128:
            raise ValueError("seed must be a 128-bit non-negative integer")
        if not 0 < self.sampling_probability <= 1:
            raise ValueError(
                f"sampling_probability must be in (0, 1], not {self.sampling_probability}"
            )
        if self.num_units < 0:
            raise ValueError(f"num_units must be at least 0, not {self.num_units}")

    def _uniform(self, step: int, stream: int) -> np.ndarray:
        if step < 0:
            raise ValueError(f"step must be at least 0, not {step}")
        # Philox is counter based: (stream, step) in the high words can never overlap.
        bits = np.random.Philox(key=self.seed, counter=[0, 0, stream, step])
        return np.random.Generator(bits).random(self.num_units)

    def sample(self, step: int) -> np.ndarray:
        """Ids of the units that take part in `step`, ascending, int64; may be empty."""
        return np.flatnonzero(self._uniform(step, 0) < self.sampling_probability)

    def choose(self, step: int, counts: np.ndarray) -> np.ndarray:
        """For each unit, which of its `counts[unit]` reports it shows at `step`: uniform, int64.

        [num_units] -> [num_units], in [0, counts); -1 for a unit without reports. Independent of
        `sample`, and of every other unit.
        """
        draws = self._uniform(step, 1)
        return np.minimum((draws * counts).astype(np.int64), counts - 1)
