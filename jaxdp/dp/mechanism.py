# SPDX-License-Identifier: Apache-2.0
"""One training stage as a DP mechanism: the one object that sampler, noise and accountant read."""

import dataclasses
import math
import numbers

import dp_accounting

CLIP_NORM_RANGE = (1e-6, 1e6)
"""Clip norms whose squares and noise are far from float32's limits; outside, a norm could
underflow to 0 and pass the clip unseen, or C itself become infinite."""


@dataclasses.dataclass(frozen=True)
class SubsampledGaussian:
    """`steps` releases of a Poisson-subsampled, L2-clipped, Gaussian-noised gradient sum.

    Guarantee (add/remove one unit): each step adds to the sum at most one vector of norm
    `l2_clip_norm` for the differing unit, and Gaussian noise of standard deviation `stddev` to
    every coordinate; so each step is the Poisson-subsampled Gaussian mechanism with
    `sampling_probability` and `noise_multiplier` (Abadi et al., 2016; Mironov et al., 2019), and
    `dp_event` is that, composed `steps` times.

    Everything here is configuration, hence public; nothing is measured on private data. In
    particular `units` is the published number of privacy units, not a count taken at run time.

    Attributes:
        units: number of privacy units (reports or patients) that the batch is drawn from.
        expected_batch_size: expected number of units per step, in (0, units]; also the divisor that
            turns the noisy sum into a mean.
        steps: number of releases, >= 0.
        l2_clip_norm: bound C on each unit's gradient norm per step, in CLIP_NORM_RANGE.
        noise_multiplier: standard deviation of the noise over C, unitless, >= 0.

    Raises:
        ValueError: a field is out of range, or `units` or `steps` is no whole number.
    """

    units: int
    expected_batch_size: float
    steps: int
    l2_clip_norm: float
    noise_multiplier: float

    def __post_init__(self):
        for name, least in (("units", 1), ("steps", 0)):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")
        if not 0 < self.expected_batch_size <= self.units:
            raise ValueError(
                f"expected_batch_size must be in (0, units = {self.units}], so that the sampling "
                f"probability is at most 1; it is {self.expected_batch_size}"
            )
        low, high = CLIP_NORM_RANGE
        if not low <= self.l2_clip_norm <= high:
            raise ValueError(
                f"l2_clip_norm must be in [{low:g}, {high:g}], not {self.l2_clip_norm}"
            )
        if not (self.noise_multiplier >= 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(
                f"noise_multiplier must be at least 0 and finite, not {self.noise_multiplier}"
            )

    @property
    def sampling_probability(self) -> float:
        """Chance that a unit takes part in a step, independently of all others."""
        return self.expected_batch_size / self.units

    @property
    def stddev(self) -> float:
        """Standard deviation of the noise on the clipped SUM, in gradient units."""
        return self.noise_multiplier * self.l2_clip_norm

    @property
    def dp_event(self) -> dp_accounting.DpEvent:
        """The stage for any dp-accounting accountant; a no-op for zero steps."""
        if self.steps == 0:
            return dp_accounting.NoOpDpEvent()
        step = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_probability < 1:
            step = dp_accounting.PoissonSampledDpEvent(self.sampling_probability, step)
        # Unsampled (q = 1) steps stay plain Gaussians: accountants then use that T of them are
        # exactly one of noise_multiplier / sqrt(T), instead of T convolutions.
        return dp_accounting.SelfComposedDpEvent(step, self.steps)

    def replace(self, **changes) -> "SubsampledGaussian":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
