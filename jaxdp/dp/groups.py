# SPDX-License-Identifier: Apache-2.0
"""Group privacy: what the reports of one patient cost together where the unit is one report."""

import functools
import math
from collections.abc import Sequence

import dp_accounting
import numpy as np
from dp_accounting import dp_event, pld
from scipy import stats

from .accounting import INTERVAL, MAX_EPSILON, composed_event, epsilon_pld, epsilon_rdp
from .mechanism import SubsampledGaussian

_RARE = 1e-6
"""Share of delta that pays for draws so large that they are left out."""


def group_epsilon(mechanisms: Sequence[SubsampledGaussian], delta: float, size: int) -> float:
    """Upper bound on epsilon at `delta` if `size` units are added or removed together.

    Of k units, Binomial(k, q) take part in a step and move its sum by at most as many clip norms,
    so the step is dominated by a mixture of Gaussians with these shifts (Choquette-Choo et al.,
    2024, Corollary 4.7), which PLD composes. Tighter than the bound for any mechanism: k epsilon,
    at about e^(k epsilon) times delta.

    Returns infinity, claiming nothing, where the bound exceeds MAX_EPSILON, or would by far.

    Raises:
        ValueError: `size` is below 1, or see `epsilon_pld`.
    """
    if size < 1:
        raise ValueError(f"a group has at least 1 unit, not {size}")
    return _group_epsilon(tuple(m for m in mechanisms if m.steps > 0), delta, size)


@functools.cache
def _group_epsilon(active: tuple[SubsampledGaussian, ...], delta: float, size: int) -> float:
    if size == 1:
        return epsilon_pld(active, delta)
    guess = size * epsilon_rdp(active, delta)  # the true cost is mostly higher
    if guess == 0 or guess > 4 * MAX_EPSILON:
        return 0.0 if guess == 0 else math.inf
    steps = sum(m.steps for m in active)
    accountant = _accountant(guess, steps, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for m in active:
        accountant.compose(_step_event(m, size, _RARE * delta / steps), m.steps)
    # With chance _RARE * delta a step draws more than its event knows. Adding that to delta covers
    # what the group may then reveal, and to epsilon what its absence may.
    with np.errstate(over="ignore"):  # of exp(epsilon), in the thousands
        epsilon = float(accountant.get_epsilon((1 - _RARE) * delta)) + 2 * _RARE * delta
    return epsilon if epsilon <= MAX_EPSILON else math.inf


def _step_event(mechanism: SubsampledGaussian, size: int, rare: float) -> dp_accounting.DpEvent:
    """One step as a group sees it, given that it draws no more units than at most a share `rare` of
    steps do."""
    noise, drawn = mechanism.noise_multiplier, stats.binom(size, mechanism.sampling_probability)
    # Rare small draws count as larger ones, which never lowers the cost: dp-accounting cannot
    # invert the loss of a group of which some are drawn all but surely.
    shifts = np.arange(drawn.ppf(1e-9), max(drawn.isf(rare), 1) + 1)
    if len(shifts) == 1:
        return dp_accounting.GaussianDpEvent(noise / float(shifts[0]))
    chances = drawn.pmf(shifts)
    chances[0] = drawn.cdf(shifts[0])
    chances /= drawn.cdf(shifts[-1])
    if shifts[0] > 0:
        chances[-1] += 1e-15  # nor a sum of chances that rounding left just below 1
    return dp_event.MixtureOfGaussiansDpEvent(noise, shifts.tolist(), chances.tolist())


@functools.cache
def swap_epsilon(mechanisms: tuple[SubsampledGaussian, ...], delta: float) -> float:
    """Upper bound on epsilon at `delta` if one unit is exchanged for another; infinity as above."""
    guess = epsilon_rdp(mechanisms, delta)
    if guess == 0 or guess > MAX_EPSILON:
        return 0.0 if guess == 0 else math.inf
    steps = sum(m.steps for m in mechanisms)
    accountant = _accountant(guess, steps, dp_accounting.NeighboringRelation.REPLACE_ONE)
    epsilon = float(accountant.compose(composed_event(mechanisms)).get_epsilon(delta))
    return epsilon if epsilon <= MAX_EPSILON else math.inf


def _accountant(
    guess: float, steps: int, relation: dp_accounting.NeighboringRelation
) -> pld.PLDAccountant:
    """Its grid is a fraction of the standard deviation of one step's privacy loss, as that is where
    epsilon is about `guess`: results are about 1 % too high, in a tenth of the time."""
    interval = max(INTERVAL, 0.1 * min(math.sqrt(guess), guess) / math.sqrt(steps))
    return pld.PLDAccountant(relation, value_discretization_interval=interval)
