# SPDX-License-Identifier: Apache-2.0
"""What a list of mechanisms costs, and how much noise a target allows.

All arithmetic on privacy loss is dp-accounting's: privacy loss distributions (PLD; tight, rounded
upwards by construction), with Renyi DP (RDP) as the independent, looser second opinion.
"""

import math
from collections.abc import Sequence

import dp_accounting
from dp_accounting import pld, rdp

from .mechanism import SubsampledGaussian

MAX_EPSILON = 50.0
"""Targets above this are refused: they protect nothing, and their PLDs exhaust memory."""
MIN_NOISE_MULTIPLIER = 0.2
"""Below this PLD arrays reach gigabytes; per-step privacy is nil there anyway."""


class CalibrationError(ValueError):
    """No noise multiplier in the supported range meets the target."""


def _compose(accountant, mechanisms: Sequence[SubsampledGaussian]):
    for mechanism in mechanisms:
        accountant.compose(mechanism.dp_event)
    return accountant


def epsilon_pld(mechanisms: Sequence[SubsampledGaussian], delta: float) -> float:
    """Upper bound on epsilon at `delta` of running all mechanisms on the same data.

    Adaptive composition of subsampled Gaussians by PLD under add/remove adjacency (Koskela et al.,
    2020; Doroshenko et al., 2022), pessimistic discretisation: never below the true value.

    Returns 0.0 for no steps at all, infinity if any stage that takes a step has no noise.

    Raises:
        ValueError: delta outside (0, 1), or noise so small (see MIN_NOISE_MULTIPLIER) that the
            distribution would not fit in memory.
    """
    _check_delta(delta)
    active = [m for m in mechanisms if m.steps > 0]
    if any(m.noise_multiplier == 0 for m in active):
        return math.inf
    for m in active:
        if m.noise_multiplier < MIN_NOISE_MULTIPLIER:
            raise ValueError(
                f"noise_multiplier {m.noise_multiplier:g} is below {MIN_NOISE_MULTIPLIER:g}: the "
                "privacy loss distribution would not fit in memory, and nothing would be protected"
            )
    return float(_compose(pld.PLDAccountant(), active).get_epsilon(delta))


def epsilon_rdp(mechanisms: Sequence[SubsampledGaussian], delta: float) -> float:
    """The same bound by Renyi DP (Mironov et al., 2019): cheap, and not below `epsilon_pld`'s truth."""
    _check_delta(delta)
    active = [m for m in mechanisms if m.steps > 0]
    if any(m.noise_multiplier == 0 for m in active):
        return math.inf
    return float(_compose(rdp.RdpAccountant(), active).get_epsilon(delta))


def calibrate_noise(
    mechanism: SubsampledGaussian,
    epsilon: float,
    delta: float,
    *,
    others: Sequence[SubsampledGaussian] = (),
) -> SubsampledGaussian:
    """The mechanism with the least noise that keeps it, composed with `others`, within epsilon.

    The result's PLD epsilon never exceeds the target and is within 0.5 % of it.

    Args:
        mechanism: the stage left open; its noise_multiplier is ignored.
        epsilon: target for everything together, in (0, MAX_EPSILON].
        delta: in (0, 1).
        others: stages whose noise is already fixed.

    Raises:
        CalibrationError: the target is out of range, or `others` alone already exceed it.
    """
    _check_delta(delta)
    if not 0 < epsilon <= MAX_EPSILON:
        raise CalibrationError(
            f"epsilon must be in (0, {MAX_EPSILON:g}], not {epsilon:g}; for training without "
            "privacy set it to None or infinity"
        )
    if mechanism.steps == 0:
        raise CalibrationError("a stage of 0 steps has no noise to calibrate")
    spent = epsilon_pld(others, delta)
    if spent >= epsilon:
        raise CalibrationError(
            f"the other stages already cost epsilon {spent:.4g} of the target {epsilon:g}"
        )

    def within(noise_multiplier: float, bound) -> bool:
        return (
            bound([*others, mechanism.replace(noise_multiplier=noise_multiplier)], delta) <= epsilon
        )

    # RDP is cheap and never below PLD, so its answer is an upper end for the PLD search. It is
    # found by doubling, which also keeps PLDs of tiny multipliers (gigabytes) from ever being built.
    low, high = MIN_NOISE_MULTIPLIER, 1.0
    while not within(high, epsilon_rdp):
        low, high = high, 2 * high
        if high > 1e7:
            raise CalibrationError(
                f"epsilon {epsilon:g} at delta {delta:g} is out of reach for "
                f"{mechanism.steps} steps at sampling probability "
                f"{mechanism.sampling_probability:g}, whatever the noise; other stages cost {spent:.4g}"
            )
    high = _bisect(lambda s: within(s, epsilon_rdp), low, high, 1e-3)
    low = MIN_NOISE_MULTIPLIER
    if high > low:
        # PLD rarely allows less than 0.8 of RDP's noise; walk down until it does not.
        low = high
        while within(low, epsilon_pld):
            high, low = low, max(0.85 * low, MIN_NOISE_MULTIPLIER)
            if high == MIN_NOISE_MULTIPLIER:
                break
    return mechanism.replace(
        noise_multiplier=_bisect(lambda s: within(s, epsilon_pld), low, high, 2e-4)
    )


def _bisect(holds, low: float, high: float, tolerance: float) -> float:
    """The least value in (low, high] for which the monotone `holds` is true, within a relative
    `tolerance`, from the side on which it is true; `holds(high)` is known to be true."""
    while high - low > tolerance * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), not {delta:g}")


def accountant_version() -> str:
    """Name and version of the library behind the numbers."""
    from importlib.metadata import version

    return f"dp-accounting {version('dp-accounting')}"


def composed_event(mechanisms: Sequence[SubsampledGaussian]) -> dp_accounting.DpEvent:
    """All mechanisms as one event, for anyone's own accountant."""
    return dp_accounting.ComposedDpEvent([m.dp_event for m in mechanisms])
