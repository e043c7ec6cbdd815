# SPDX-License-Identifier: Apache-2.0
"""Group privacy against densities integrated on a grid, closed forms, and the textbook bound."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from scipy import optimize, stats

from jaxdp.dp import SubsampledGaussian, epsilon_pld, group_epsilon
from jaxdp.dp.accounting import MAX_EPSILON, composed_event
from jaxdp.dp.groups import _step_event, swap_epsilon

DELTA = 1e-5


def mechanism(q=0.1, steps=20, noise=2.0):
    return SubsampledGaussian(
        units=1000,
        expected_batch_size=1000 * q,
        steps=steps,
        l2_clip_norm=0.5,
        noise_multiplier=noise,
    )


def densities(shifts, chances, noise, steps):
    """(N(0, noise^2), its mixture over shifts) of all outputs of 1 or 2 steps, times dx^steps."""
    step = noise * (0.002 if steps == 1 else 0.025)
    x = np.arange(-10 * noise, max(shifts) + 10 * noise, step)
    without = stats.norm.pdf(x, 0, noise) * step
    with_them = sum(c * stats.norm.pdf(x, s, noise) for s, c in zip(shifts, chances, strict=True))
    if steps == 1:
        return without, with_them * step
    return np.outer(without, without), np.outer(with_them, with_them) * step**2


def oracle(left, right, delta):
    """The epsilon of two densities, in the worse direction."""

    def worst(epsilon):
        return max(
            np.maximum(p - math.exp(epsilon) * q, 0).sum()
            for p, q in ((left, right), (right, left))
        )

    return optimize.brentq(lambda e: worst(e) - delta, 0, 40, xtol=1e-5)


@pytest.mark.parametrize(
    ("size", "q", "noise", "steps"),
    [
        (3, 0.3, 1.0, 1),
        (10, 0.02, 0.8, 1),
        (5, 0.9, 4.0, 1),
        (200, 1 / 6, 30.0, 1),  # some are drawn all but surely
        (2, 1 - 1e-11, 7.0, 1),
        (11, 0.9748838574422467, 30.0, 1),  # chances that add up to a little less than 1
        (3, 0.2, 1.5, 2),
        (40, 0.1, 6.0, 2),
    ],
)
def test_is_the_mixture_over_how_many_of_the_group_are_drawn(size, q, noise, steps):
    shifts = np.arange(size + 1)
    exact = oracle(*densities(shifts, stats.binom.pmf(shifts, size, q), noise, steps), DELTA)
    found = group_epsilon([mechanism(q, steps, noise)], DELTA, size)
    assert exact * (1 - 1e-4) <= found <= 1.02 * exact


@pytest.mark.parametrize(("q", "noise"), [(0.3, 1.0), (0.05, 0.8)])
def test_a_swap_is_two_opposite_shifts(q, noise):
    x = np.arange(-20, 20, 0.005)
    base = (1 - q) * stats.norm.pdf(x, 0, noise) * 0.005
    exact = oracle(*(base + q * stats.norm.pdf(x, s, noise) * 0.005 for s in (1, -1)), DELTA)
    found = swap_epsilon((mechanism(q, 1, noise),), DELTA)
    assert exact * (1 - 1e-4) <= found <= 1.02 * exact


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_without_sampling_a_group_divides_the_noise(size):
    runs = [mechanism(1.0, 30, 40.0), mechanism(1.0, 1, 20.0)]
    effective = size * math.sqrt(30 / 40**2 + 1 / 20**2)
    exact = dp_accounting.get_epsilon_gaussian(1 / effective, DELTA)
    assert exact <= group_epsilon(runs, DELTA, size) <= 1.01 * exact + 1e-3
    if size == 2:
        assert exact <= swap_epsilon(tuple(runs), DELTA) <= 1.01 * exact + 1e-3


def test_a_group_of_one_is_the_ordinary_guarantee():
    runs = [mechanism(), mechanism(1.0, 3, 9.0)]
    assert group_epsilon(runs, DELTA, 1) == epsilon_pld(runs, DELTA)
    ordinary, mixture = (pld.PLDAccountant(value_discretization_interval=1e-2) for _ in "ab")
    ordinary.compose(composed_event(runs))
    for m in runs:
        mixture.compose(_step_event(m, 1, 1e-15), m.steps)
    assert mixture.get_epsilon(DELTA) == pytest.approx(ordinary.get_epsilon(DELTA), rel=1e-6)


@pytest.mark.parametrize("runs", [[mechanism()], [mechanism(0.01, 100, 0.9), mechanism(1, 1, 9)]])
@pytest.mark.parametrize("size", [2, 3])
def test_grows_with_the_group_and_stays_below_the_bound_for_any_mechanism(runs, size):
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(composed_event(runs))
    single = epsilon_pld(runs, DELTA)
    epsilons = np.linspace(single, 4 * single, 500)
    # k epsilon, at delta times 1 + e^epsilon + ... + e^((k - 1) epsilon)
    grown = np.expm1(size * epsilons) / np.expm1(epsilons)
    textbook = size * epsilons[accountant.get_delta(epsilons) * grown <= DELTA][0]
    found = group_epsilon(runs, DELTA, size)
    assert single < found < textbook
    assert group_epsilon(runs, DELTA, size - 1) < found


def test_nothing_is_claimed_beyond_what_protects():
    runs = [mechanism(0.02, 100, 1.0)]
    sizes = [2, 8, 32, 64]
    found = [group_epsilon(runs, DELTA, size) for size in sizes]
    assert found == sorted(found) and found[-1] == math.inf
    assert all(e <= MAX_EPSILON or e == math.inf for e in found)
    assert swap_epsilon((mechanism(1.0, 100, 0.5),), DELTA) == math.inf


def test_no_steps_no_noise_no_group():
    assert group_epsilon([mechanism(steps=0)], DELTA, 5) == 0.0
    assert group_epsilon([mechanism(noise=0.0)], DELTA, 5) == math.inf
    assert swap_epsilon((mechanism(noise=0.0),), DELTA) == math.inf
    with pytest.raises(ValueError, match="at least 1 unit, not 0"):
        group_epsilon([mechanism()], DELTA, 0)
