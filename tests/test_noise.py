# SPDX-License-Identifier: Apache-2.0
"""The noise: its size by a test that rejects 0.9 and 1.1 times it, and never the same twice.

All tests run with `jax_debug_key_reuse`, which raises when a key is consumed twice. Statistical
tests use fixed keys, so they pass always or never.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxdp.dp import SubsampledGaussian, add_noise_and_average, dp_aggregate
from jaxdp.dp.noise import standard_normal

MECHANISM = SubsampledGaussian(
    units=1000, expected_batch_size=40, steps=9, l2_clip_norm=0.25, noise_multiplier=3.0
)
STDDEV = 0.25 * 3.0  # of the noise on the sum


@pytest.fixture(autouse=True)
def _no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        yield


def releases(clipped_sum, steps: int, mechanism=MECHANISM, seed: int = 0):
    """What `steps` updates release for the same incoming sum, one tree per step."""
    transform = add_noise_and_average(mechanism, jax.random.key(seed))
    state = transform.init(clipped_sum)
    out = []
    for _ in range(steps):
        released, state = transform.update(clipped_sum, state)
        out.append(jax.tree.map(np.asarray, released))
    return out


def p_value(values: np.ndarray, stddev: float) -> float:
    """Smaller of a two-sided chi-squared test of the variance (mean known to be 0) and a
    Kolmogorov-Smirnov test of the shape, against N(0, stddev^2)."""
    values = np.asarray(values, np.float64).ravel()
    lower = stats.chi2.cdf(((values / stddev) ** 2).sum(), values.size)
    variance = 2 * min(lower, 1 - lower)
    return min(variance, stats.kstest(values, stats.norm(scale=stddev).cdf).pvalue)


ZEROS = {"x": jnp.zeros((50, 200)), "y": jnp.zeros(10_000), "z": jnp.zeros(())}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_on_the_sum_has_the_mechanisms_stddev(seed):
    released = releases(ZEROS, 2, seed=seed)
    for leaf in ("x", "y"):
        noise = np.concatenate([r[leaf].ravel() for r in released]) * MECHANISM.expected_batch_size
        assert p_value(noise, STDDEV) > 1e-3
        for wrong in (0.9, 1.1):
            assert p_value(noise, wrong * STDDEV) < 1e-9
            assert p_value(noise * wrong, STDDEV) < 1e-9


@pytest.mark.parametrize(
    "changes",
    [
        {"l2_clip_norm": 7.0},
        {"noise_multiplier": 0.5},
        {"expected_batch_size": 1000.0},
        {"expected_batch_size": 0.5},
    ],
)
def test_noise_scales_with_clip_norm_and_multiplier_and_divides_by_the_expected_batch(changes):
    mechanism = MECHANISM.replace(**changes)
    (released,) = releases(ZEROS, 1, mechanism)
    expected = mechanism.noise_multiplier * mechanism.l2_clip_norm / mechanism.expected_batch_size
    assert p_value(released["x"], expected) > 1e-3


def test_every_coordinate_of_every_leaf_is_noised():
    (released,) = releases({**ZEROS, "head": jnp.zeros((3, 1))}, 1)
    for leaf in jax.tree.leaves(released):
        assert (leaf != 0).all()


def test_the_signal_is_the_sum_over_the_expected_batch_size():
    signal = jax.tree.map(lambda z: z + 8.0, ZEROS)
    for with_signal, noise in zip(releases(signal, 2), releases(ZEROS, 2), strict=True):
        for leaf in ("x", "y", "z"):
            # The same key and step, so the noise cancels, up to float32 rounding of the sum.
            np.testing.assert_allclose(
                with_signal[leaf] - noise[leaf], 8.0 / MECHANISM.expected_batch_size, rtol=1e-5
            )


def test_without_noise_it_is_the_exact_average():
    silent = MECHANISM.replace(noise_multiplier=0.0)
    (released,) = releases({"x": jnp.full(3, 8.0)}, 1, silent)
    np.testing.assert_array_equal(released["x"], np.full(3, np.float32(0.2)))


def correlation(a, b) -> float:
    """In units of its own standard deviation under independence."""
    a, b = np.ravel(a), np.ravel(b)
    return float(np.corrcoef(a, b)[0, 1] * np.sqrt(a.size))


def test_noise_is_independent_between_steps_leaves_and_keys():
    twins = {"x": jnp.zeros(10_000), "y": jnp.zeros(10_000)}
    here, there = releases(twins, 3), releases(twins, 1, seed=1)
    assert abs(correlation(here[0]["x"], here[0]["y"])) < 4.5
    assert abs(correlation(here[0]["x"], here[1]["x"])) < 4.5
    assert abs(correlation(here[1]["x"], here[2]["x"])) < 4.5
    assert abs(correlation(here[0]["y"], here[1]["x"])) < 4.5
    assert abs(correlation(here[0]["x"], there[0]["x"])) < 4.5
    assert correlation(here[0]["x"], here[0]["x"]) > 50  # the measure can fail


def test_no_value_repeats_over_many_steps_and_leaves():
    tree = {name: jnp.zeros(3) for name in "abcd"}
    released = releases(tree, 100)
    seen = [float(v) for r in released for leaf in jax.tree.leaves(r) for v in leaf]
    assert len(set(seen)) == len(seen) == 1200


def test_noise_is_a_pure_function_of_key_and_step():
    transform = add_noise_and_average(MECHANISM, jax.random.key(5))
    tree = {"x": jnp.zeros(7)}
    state = transform.init(tree)
    for _ in range(3):
        saved = state
        released, state = transform.update(tree, state)
    assert int(state.step) == 3
    again, _ = add_noise_and_average(MECHANISM, jax.random.key(99)).update(tree, saved)
    np.testing.assert_array_equal(released["x"], again["x"])  # the state's key rules, not a new one
    jitted, _ = jax.jit(transform.update)(tree, saved)
    # Up to rounding of four draws below 5.42 each, to 2.4e-7, halved: a sum may be near zero.
    unit = STDDEV / MECHANISM.expected_batch_size
    np.testing.assert_allclose(released["x"], jitted["x"], rtol=0, atol=5e-7 * unit)


def test_the_callers_key_survives_donation_of_the_state():
    key = jax.random.key(3)
    transform = add_noise_and_average(MECHANISM, key)
    state = transform.init({"x": jnp.zeros(2)})
    assert state.key is not key
    jax.tree.map(lambda a: a.delete(), state)
    jax.random.key_data(key).block_until_ready()


def test_noise_does_not_stop_where_one_float32_draw_does():
    """One draw takes at most 2^23 values; a sum of several nearly never repeats one."""
    with jax.debug_key_reuse(False):
        one = jax.jit(lambda k: jax.random.normal(k, (2_000_000,)))(jax.random.key(0))
        ours = jax.jit(lambda k: standard_normal(k, (2_000_000,), jnp.float32))(jax.random.key(0))
    assert p_value(ours[:50_000], 1.0) > 1e-3
    assert len(np.unique(one)) < 0.9 * 2_000_000  # 2^23 (1 - exp(-2e6 / 2^23)), collisions
    assert len(np.unique(ours)) > 0.97 * 2_000_000


def test_an_empty_draw_is_noised_like_any_other():
    nobody = {"x": jnp.zeros((0, 20_000))}
    transform = dp_aggregate(MECHANISM, jax.random.key(0))
    released, _ = transform.update(nobody, transform.init({"x": jnp.zeros(20_000)}))
    assert p_value(released["x"] * MECHANISM.expected_batch_size, STDDEV) > 1e-3


def test_aggregate_clips_sums_and_noises_once():
    rng = np.random.default_rng(0)
    gradients = {"x": jnp.float32(rng.normal(size=(6, 20_000)))}  # norms near 141, clipped to 0.25
    transform = dp_aggregate(MECHANISM, jax.random.key(1))
    released, _ = transform.update(gradients, transform.init({"x": jnp.zeros(20_000)}))
    x = np.asarray(gradients["x"], np.float64)
    clipped = (x * 0.25 / np.linalg.norm(x, axis=1, keepdims=True)).sum(0)
    noise = np.asarray(released["x"], np.float64) * MECHANISM.expected_batch_size - clipped
    # Noise per report instead of per batch would be sqrt(6) times as large.
    assert p_value(noise, STDDEV) > 1e-3


def test_aggregate_fits_into_an_optax_chain():
    optimizer = optax.chain(dp_aggregate(MECHANISM, jax.random.key(1)), optax.adam(0.1))
    params = {"x": jnp.zeros(4)}
    updates, _ = optimizer.update({"x": jnp.ones((3, 4))}, optimizer.init(params), params)
    assert optax.apply_updates(params, updates)["x"].shape == (4,)


def test_sums_narrower_than_float32_are_refused():
    transform = add_noise_and_average(MECHANISM, jax.random.key(0))
    tree = {"x": jnp.zeros(3, jnp.bfloat16)}
    with pytest.raises(TypeError, match="bfloat16"):
        transform.update(tree, transform.init(tree))
