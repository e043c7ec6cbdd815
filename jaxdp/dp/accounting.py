# SPDX-License-Identifier: Apache-2.0
"""What a list of mechanisms costs, and how much noise a target allows.

All arithmetic on privacy loss is dp-accounting's: privacy loss distributions (PLD; tight, rounded
upwards by construction), with Renyi DP (RDP) as the independent, looser second opinion.
"""

import functools
import math
from collections.abc import Callable, Sequence

import dp_accounting
from absl import logging
from dp_accounting import pld, rdp

from .mechanism import SubsampledGaussian

MAX_EPSILON = 50.0
"""Targets above this are refused: they protect nothing."""
MIN_NOISE_MULTIPLIER = 0.2
"""Less noise per step than this is refused: it protects nothing, and its PLD is slow."""
INTERVAL = 1e-4
"""dp-accounting's default grid of privacy losses; kept, so that anyone's check gives our number."""
MAX_PLD_EPSILON = 500.0
"""Where RDP says more than this, PLD arrays would reach gigabytes, so PLD is not tried."""


class CalibrationError(ValueError):
    """No noise multiplier in the supported range meets the target."""


class TooLittleNoise(ValueError):
    """So little that nothing would be protected, and PLD arithmetic has no answer."""


def epsilon_pld(mechanisms: Sequence[SubsampledGaussian], delta: float) -> float:
    """Upper bound on epsilon at `delta` of running all mechanisms on the same data.

    Adaptive composition of subsampled Gaussians by PLD under add/remove adjacency (Koskela et al.,
    2020; Doroshenko et al., 2022), pessimistic discretisation at dp-accounting's default interval:
    never below the true value, and what anyone's `PLDAccountant` gives for `composed_event`.

    Returns 0.0 for no steps at all, infinity if any stage that takes a step has no noise.

    Raises:
        TooLittleNoise: the distribution would not fit in memory (MIN_NOISE_MULTIPLIER,
            MAX_PLD_EPSILON).
        ValueError: delta is outside (0, 1) or below what PLD arithmetic resolves (about 1e-14).
    """
    looser = epsilon_rdp(mechanisms, delta)
    if looser in (0.0, math.inf):
        return looser
    least = min(m.noise_multiplier for m in mechanisms if m.steps > 0)
    if least < MIN_NOISE_MULTIPLIER or looser > MAX_PLD_EPSILON:
        raise TooLittleNoise(
            f"noise_multiplier {least:g} is too small (epsilon is about {looser:.3g}): nothing "
            "would be protected, and the privacy loss distribution would not fit in memory"
        )
    return _pld(tuple(mechanisms), delta, INTERVAL)


@functools.cache  # planning, evaluation, statement and its check ask for the same
def _pld(mechanisms: tuple[SubsampledGaussian, ...], delta: float, interval: float) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    epsilon = float(accountant.compose(composed_event(mechanisms)).get_epsilon(delta))
    if math.isinf(epsilon):
        raise ValueError(f"delta {delta:g} is too small for the accountant; use at least 1e-12")
    return epsilon


def epsilon_rdp(mechanisms: Sequence[SubsampledGaussian], delta: float) -> float:
    """Looser bound on the same epsilon by Renyi DP (Mironov et al., 2019), in milliseconds.

    Same adjacency, returns and delta in (0, 1) as `epsilon_pld`, but for any amount of noise.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), not {delta:g}")
    active = tuple(m for m in mechanisms if m.steps > 0)
    if not active:
        return 0.0
    if any(m.noise_multiplier == 0 for m in active):
        return math.inf
    return _rdp(active, delta)


@functools.cache
def _rdp(active: tuple[SubsampledGaussian, ...], delta: float) -> float:
    # dp-accounting warns about every Renyi order it cannot use; the other orders decide.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        accountant = rdp.RdpAccountant().compose(composed_event(active))
        return float(accountant.get_epsilon(delta))
    finally:
        logging.set_verbosity(verbosity)


def require_target(epsilon: float) -> None:
    """CalibrationError for an epsilon that no noise is calibrated to: not in (0, MAX_EPSILON]."""
    if not 0 < epsilon <= MAX_EPSILON:
        raise CalibrationError(
            f"epsilon must be in (0, {MAX_EPSILON:g}], not {epsilon:g}; for training without "
            "privacy set it to None or infinity"
        )


def calibrate_noise(
    mechanism: SubsampledGaussian,
    epsilon: float,
    delta: float,
    *,
    others: Sequence[SubsampledGaussian] = (),
) -> SubsampledGaussian:
    """The mechanism with the least noise that keeps it, composed with `others`, within epsilon.

    The result's `epsilon_pld` (add/remove one unit) never exceeds the target and is within 0.5 % of
    it, unless even MIN_NOISE_MULTIPLIER, the least supported, costs less.

    Args:
        mechanism: the stage left open; its noise_multiplier is ignored.
        epsilon: target for everything together, in (0, MAX_EPSILON].
        delta: in (0, 1).
        others: stages whose noise is already fixed.

    Raises:
        CalibrationError: the target is out of range, or `others` alone already exceed it.
        ValueError: see `epsilon_pld`.
    """
    require_target(epsilon)
    if mechanism.steps == 0:
        raise CalibrationError("a stage of 0 steps has no noise to calibrate")
    spent = epsilon_pld(others, delta)
    if spent >= epsilon:
        raise CalibrationError(
            f"the other stages already cost epsilon {spent:.4g} of the target {epsilon:g}"
        )

    def cost(noise_multiplier: float, interval: float = INTERVAL) -> float:
        stages = [*others, mechanism.replace(noise_multiplier=noise_multiplier)]
        if epsilon_rdp(stages, delta) > MAX_PLD_EPSILON:
            return math.inf
        return _pld(tuple(stages), delta, interval)

    # What is left over is 0.2 % of the part of the target that this stage can use.
    aim = epsilon - 0.002 * (epsilon - spent)
    found = max(_central_limit_guess(mechanism, aim, delta, others), MIN_NOISE_MULTIPLIER)
    if epsilon >= 1:
        # Ten times coarser is ten times faster, and for larger targets close enough to start from.
        found = _least_noise(lambda s: cost(s, 10 * INTERVAL), epsilon, aim, found) or found
    found = _least_noise(cost, epsilon, aim, found)
    if found is None:
        raise CalibrationError(
            f"epsilon {epsilon:g} at delta {delta:g} is out of reach for {mechanism.steps} steps "
            f"at sampling probability {mechanism.sampling_probability:g}, whatever the noise; "
            f"other stages cost {spent:.4g}"
        )
    return mechanism.replace(noise_multiplier=found)


def _central_limit_guess(mechanism, epsilon, delta, others) -> float:
    """Where to start the search, never a bound: many steps behave like one Gaussian mechanism of
    1 / sigma^2 = sum of q^2 T (exp(1 / noise_multiplier^2) - 1) (Bu et al., 2020)."""
    rest = dp_accounting.get_sigma_gaussian(epsilon, delta) ** -2
    for m in others:
        if m.steps > 0:
            rest -= m.steps * m.sampling_probability**2 * math.expm1(m.noise_multiplier**-2)
    rest = max(rest, 1e-4 * epsilon**2)  # the others already take all of it, by this estimate
    if mechanism.sampling_probability == 1:
        return math.sqrt(mechanism.steps / rest)  # exact
    ratio = rest / (mechanism.steps * mechanism.sampling_probability**2)
    return 1 / math.sqrt(math.log1p(ratio))


def _least_noise(
    cost: Callable[[float], float], target: float, aim: float, start: float
) -> float | None:
    """A noise multiplier >= MIN_NOISE_MULTIPLIER whose decreasing `cost` is at most the target and
    no farther below `aim` than aim is below target; None if no noise gets there.

    Secant steps on log-log scale, kept in a bracket that is halved whenever they are slow.
    """
    low = high = None  # (noise multiplier, cost): above the target, at most the target
    noise = start
    for trial in range(60):
        value = cost(noise)
        if value > target:
            low = (noise, value)
        else:
            high = (noise, value)
            if value > 2 * aim - target or noise == MIN_NOISE_MULTIPLIER:
                break
        if low is None or high is None:
            if noise > 1e9:
                return None
            # As if cost were 1 / noise; in strides where the others' cost makes it flatter.
            ratio = min(max(value / aim, 0.5), 2.0) if trial < 2 else (0.8 if low is None else 2.0)
            noise = max(noise * ratio, MIN_NOISE_MULTIPLIER)
        else:
            if high[0] - low[0] < 1e-4 * high[0]:
                break  # the accountant's own resolution is coarser than the tolerance
            noise = math.sqrt(low[0] * high[0])
            if trial % 2 and math.isfinite(low[1]) and high[1] > 0:
                slope = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
                secant = high[0] * (aim / high[1]) ** (1 / slope)
                noise = secant if low[0] < secant < high[0] else noise
    return high[0] if high else None


def composed_event(mechanisms: Sequence[SubsampledGaussian]) -> dp_accounting.DpEvent:
    """All mechanisms as one event, for anyone's own accountant."""
    return dp_accounting.ComposedDpEvent([m.dp_event for m in mechanisms])
