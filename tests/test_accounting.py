# SPDX-License-Identifier: Apache-2.0
"""Accounting against closed forms, against other accountants, and calibration at every scale."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from jaxdp.dp import (
    CalibrationError,
    SubsampledGaussian,
    accounting,
    add_noise_and_average,
    calibrate_noise,
    epsilon_pld,
    epsilon_rdp,
)

DELTA = 1e-5


def mechanism(q=0.02, steps=1000, noise=1.0) -> SubsampledGaussian:
    return SubsampledGaussian(
        units=50_000,
        expected_batch_size=q * 50_000,
        steps=steps,
        l2_clip_norm=1.0,
        noise_multiplier=noise,
    )


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang (2018), theorem 8, for sensitivity / standard deviation = mu."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


def sampled_gaussian_delta(epsilon: float, q: float, noise: float) -> float:
    """One Poisson-subsampled Gaussian step: mixture (1-q) N(0) + q N(1) against N(0), both ways.

    The likelihood ratio r(x) = 1 - q + q exp((2x - 1) / 2 noise^2) grows with x, so the
    hockey-stick divergence of each direction is an integral over a half line.
    """

    def where(ratio):
        inner = (ratio - 1 + q) / q
        return -math.inf if inner <= 0 else noise**2 * math.log(inner) + 0.5

    at = where(math.exp(epsilon))
    removed = (1 - q) * norm.sf(at / noise) + q * norm.sf((at - 1) / noise)
    removed -= math.exp(epsilon) * norm.sf(at / noise)
    at = where(math.exp(-epsilon))
    mixture = (1 - q) * norm.cdf(at / noise) + q * norm.cdf((at - 1) / noise)
    added = norm.cdf(at / noise) - math.exp(epsilon) * mixture
    return max(removed, added)


def solve_epsilon(delta_of, delta: float) -> float:
    return brentq(lambda epsilon: delta_of(epsilon) - delta, 0, 300, xtol=1e-12)


@pytest.mark.parametrize(("noise", "steps"), [(0.6, 1), (3.73, 1), (10.4, 300), (244.0, 1)])
def test_without_sampling_it_is_the_analytic_gaussian(noise, steps):
    exact = solve_epsilon(lambda e: gaussian_delta(e, math.sqrt(steps) / noise), DELTA)
    claimed = epsilon_pld([mechanism(1.0, steps, noise)], DELTA)
    assert exact <= claimed <= 1.002 * exact


@pytest.mark.parametrize(("q", "noise"), [(0.02, 0.5), (0.2, 0.8), (0.5, 1.0), (0.9, 2.0)])
def test_one_sampled_step_is_its_closed_form(q, noise):
    exact = solve_epsilon(lambda e: sampled_gaussian_delta(e, q, noise), DELTA)
    claimed = epsilon_pld([mechanism(q, 1, noise)], DELTA)
    assert exact <= claimed <= 1.002 * exact


def test_stages_compose_like_one_gaussian_where_that_is_exact():
    stages = [mechanism(1.0, 100, 20.0), mechanism(1.0, 50, 40.0), mechanism(1.0, 0, 0.0)]
    mu = math.sqrt(100 / 20.0**2 + 50 / 40.0**2)
    exact = solve_epsilon(lambda e: gaussian_delta(e, mu), DELTA)
    assert exact <= epsilon_pld(stages, DELTA) <= 1.002 * exact


def test_splitting_a_stage_changes_nothing():
    whole = epsilon_pld([mechanism(steps=300)], DELTA)
    parts = epsilon_pld([mechanism(steps=100), mechanism(steps=200)], DELTA)
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    ("q", "steps", "noise"),
    [(0.02, 1000, 0.7), (0.02, 1000, 2.5), (0.2, 300, 2.2), (1.0, 300, 10.0), (0.9, 300, 60.0)],
)
def test_renyi_is_an_upper_but_not_a_wild_bound(q, steps, noise):
    tight, loose = (f([mechanism(q, steps, noise)], DELTA) for f in (epsilon_pld, epsilon_rdp))
    assert tight < loose < 1.3 * tight


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("q", "steps", "noise"), [(0.02, 1000, 0.7), (0.02, 1000, 2.5)])
def test_agrees_with_opacus_prv(q, steps, noise):
    """An independent implementation of the same bound, accurate to its eps_error of 0.01."""
    prv = pytest.importorskip("opacus.accountants").PRVAccountant()
    prv.history = [(noise, q, steps)]
    ours = epsilon_pld([mechanism(q, steps, noise)], DELTA)
    assert prv.get_epsilon(DELTA) == pytest.approx(ours, abs=0.02)


@pytest.mark.parametrize(
    ("epsilon", "noise"), [(10, 0.67578), (1, 2.51202), (0.1, 19.5227), (0.01, 162.466)]
)
def test_agrees_with_dp_accountings_own_calibration(epsilon, noise):
    """Noise multipliers that `dp_accounting.calibrate_dp_mechanism` gave (q 0.02, 1000 steps)."""
    ours = calibrate_noise(mechanism(), epsilon, DELTA).noise_multiplier
    assert noise <= 1.0001 * ours and ours <= 1.005 * noise


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    q=st.floats(0.005, 1.0),
    steps=st.integers(1, 300),
    noise=st.floats(4.0, 50.0),
    more=st.floats(1.05, 2.0),
)
def test_epsilon_grows_with_steps_and_probability_and_falls_with_noise(q, steps, noise, more):
    base = epsilon_pld([mechanism(q, steps, noise)], DELTA)
    assert epsilon_pld([mechanism(q, math.ceil(steps * more), noise)], DELTA) > base
    assert epsilon_pld([mechanism(min(q * more, 1.0), steps, noise)], DELTA) >= base
    assert epsilon_pld([mechanism(q, steps, noise * more)], DELTA) < base
    assert epsilon_pld([mechanism(q, steps, noise)], DELTA / more) > base
    assert epsilon_rdp([mechanism(q, steps, noise)], DELTA) > base


def test_one_step_more_costs_more():
    assert epsilon_pld([mechanism(steps=101)], DELTA) > epsilon_pld([mechanism(steps=100)], DELTA)


def test_nothing_taken_costs_nothing_and_no_noise_costs_everything():
    assert epsilon_pld([], DELTA) == epsilon_rdp([], DELTA) == 0.0
    assert epsilon_pld([mechanism(steps=0, noise=0.0)], DELTA) == 0.0
    silent = [mechanism(), mechanism(noise=0.0, steps=1)]
    assert epsilon_pld(silent, DELTA) == epsilon_rdp(silent, DELTA) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_outside_0_1_is_refused(delta):
    for f in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ValueError, match="delta"):
            f([mechanism()], delta)
    with pytest.raises(ValueError, match="delta"):
        calibrate_noise(mechanism(), 1.0, delta)


def test_delta_below_the_accountants_precision_is_refused():
    with pytest.raises(ValueError, match="delta 1e-20 is too small"):
        epsilon_pld([mechanism(noise=2.0)], 1e-20)


@pytest.mark.parametrize(
    "little_noise",
    [
        mechanism(1.0, 1, 0.19),
        mechanism(noise=1e-3),
        mechanism(noise=0.21, steps=100_000),
        mechanism(1.0, 10**6, 0.3),
    ],
)
def test_too_little_noise_is_refused_instead_of_filling_the_memory(little_noise):
    with pytest.raises(ValueError, match="too small"):
        epsilon_pld([little_noise], DELTA)


def test_renyi_orders_that_fail_are_not_reported_to_the_user(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        epsilon_rdp([mechanism(0.5, 300, 10.0)], DELTA)
    assert not caplog.records


# (q, steps): the usual, the head stage's near-full batches, no sampling, one step, many steps.
SHAPES = [(0.02048, 1000), (0.2, 300), (0.9, 300), (1.0, 400), (1.0, 1), (0.004, 20_000)]
# Targets of 0.1 and 10 take the branches of 0.01 and 8, and are met in the test of agreement above.
TARGETS = [0.01, 1.0, 8.0, *(pytest.param(e, marks=pytest.mark.slow) for e in (0.1, 10.0))]


@pytest.mark.parametrize(("q", "steps"), SHAPES)
@pytest.mark.parametrize("epsilon", TARGETS)
def test_calibration_is_tight_never_above_and_takes_few_trials(q, steps, epsilon, monkeypatch):
    trials = []
    pld = accounting._pld
    monkeypatch.setattr(accounting, "_pld", lambda *a: trials.append(a[2]) or pld(*a))
    found = calibrate_noise(mechanism(q, steps), epsilon, DELTA)
    assert 0.995 * epsilon <= epsilon_pld([found], DELTA) <= epsilon
    assert found == mechanism(q, steps, found.noise_multiplier)
    # At most a second each on the default grid: seconds in all.
    assert trials.count(accounting.INTERVAL) <= 6 and len(trials) <= 12


@pytest.mark.parametrize(
    ("other", "epsilon"),
    [
        (mechanism(0.9, 300, 12.0), 8.0),
        (mechanism(1.0, 200, 120.0), 1.0),
        (mechanism(0.02, 1000, 30.0), 0.1),
        (mechanism(0.02, 1000, 2.52), 1.0),  # leaves next to nothing
    ],
)
def test_calibration_with_other_stages_meets_the_target_together(other, epsilon):
    found = calibrate_noise(mechanism(steps=500), epsilon, DELTA, others=[other])
    together = epsilon_pld([other, found], DELTA)
    assert 0.995 * epsilon <= together <= epsilon
    alone = calibrate_noise(mechanism(steps=500), epsilon, DELTA)
    assert found.noise_multiplier > alone.noise_multiplier
    # What is wasted is little of what the other stage has left over, not only of the target.
    assert epsilon - together <= 0.005 * (epsilon - epsilon_pld([other], DELTA)) + 1e-12


def test_calibration_below_the_least_noise_supported_stays_there():
    found = calibrate_noise(mechanism(1.0, 1), 50.0, DELTA)
    assert found.noise_multiplier == accounting.MIN_NOISE_MULTIPLIER
    assert epsilon_pld([found], DELTA) < 50.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 50.1, math.inf, math.nan])
def test_targets_out_of_range_are_refused(epsilon):
    with pytest.raises(CalibrationError, match="epsilon must be in"):
        calibrate_noise(mechanism(), epsilon, DELTA)


def test_a_target_the_other_stages_exceed_is_refused():
    with pytest.raises(CalibrationError, match="already cost epsilon"):
        calibrate_noise(mechanism(), 0.5, DELTA, others=[mechanism(noise=2.5)])
    with pytest.raises(CalibrationError, match="already cost epsilon inf"):
        calibrate_noise(mechanism(), 0.5, DELTA, others=[mechanism(noise=0.0)])


def test_a_target_no_noise_reaches_is_refused(monkeypatch):
    monkeypatch.setattr(accounting, "_pld", lambda *_: 0.02)
    with pytest.raises(CalibrationError, match="out of reach"):
        calibrate_noise(mechanism(), 0.01, DELTA)


def test_a_stage_without_steps_cannot_be_calibrated():
    with pytest.raises(CalibrationError, match="0 steps"):
        calibrate_noise(mechanism(steps=0), 1.0, DELTA)


def test_the_best_attack_on_one_real_release_succeeds_as_often_as_claimed():
    """The worst case, run: everybody else known, one report, all of its gradient in one coordinate.

    Each coordinate below is one trial of the likelihood ratio test at the claimed epsilon.
    """
    run = SubsampledGaussian(
        units=10, expected_batch_size=10, steps=1, l2_clip_norm=0.25, noise_multiplier=1.0
    )
    transform = add_noise_and_average(run, jax.random.key(0))
    trials = 400_000

    def release(value, state):
        (released,), state = transform.update([jnp.full(trials, value)], state)
        return np.asarray(released) * run.expected_batch_size / run.l2_clip_norm, state

    without, state = release(0.0, transform.init(None))
    with_it, _ = release(run.l2_clip_norm, state)
    epsilon = 1.0
    delta = (with_it > epsilon + 0.5).mean() - math.exp(epsilon) * (without > epsilon + 0.5).mean()
    claimed = gaussian_delta(epsilon, 1.0)
    # Five standard errors; noise of 0.9 or 1.1 times the right size is 8 or more away.
    error = math.sqrt((0.31 * 0.69 + math.exp(2 * epsilon) * 0.067 * 0.933) / trials)
    assert abs(delta - claimed) < 5 * error
    assert abs(gaussian_delta(epsilon, 1 / 1.1) - claimed) > 8 * error
    assert epsilon_pld([run], claimed) == pytest.approx(epsilon, rel=2e-3)
