# SPDX-License-Identifier: Apache-2.0
"""Secure noise: a Gaussian of the right size, on a grid, added without error, never used twice."""

import hashlib
import io
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from helpers_data import make_dataset
from helpers_training import smoke_config, write_workspace
from rich.console import Console
from scipy import stats
from test_noise import MECHANISM, STDDEV, correlation, p_value

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.dp import SecureNoise, SubsampledGaussian, clipped_gradient_sum, secure_noise
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import train
from jaxdp.training.frozen_layers import mean_feature
from jaxdp.training.randomness import RunSecret
from jaxdp.training.step import LabelledData, TrainState, make_train_step

KEY = bytes(range(32))
ZEROS = {"x": jnp.zeros((50, 400)), "y": jnp.zeros(20_000), "z": jnp.zeros(())}


def released(clipped_sum, steps=1, mechanism=MECHANISM, secret=KEY):
    """What `steps` updates release for the same incoming sum, one tree per step."""
    noise = SecureNoise(mechanism, secret, clipped_sum)
    release = noise.release()
    state, out = release.init(clipped_sum), []
    for step in range(steps):
        updates, state = release.update(clipped_sum, state, draw=noise.draw(step))
        out.append(jax.tree.map(np.asarray, updates))
    return out


@pytest.mark.parametrize("secret", [KEY, KEY[::-1], bytes(32)], ids=["one", "two", "zeros"])
def test_noise_on_the_sum_has_the_mechanisms_stddev(secret):
    trees = released(ZEROS, 2, secret=secret)
    for leaf in ("x", "y"):
        noise = np.concatenate([t[leaf].ravel() for t in trees]) * MECHANISM.expected_batch_size
        assert p_value(noise, STDDEV) > 1e-3
        for wrong in (0.9, 1.1):
            assert p_value(noise, wrong * STDDEV) < 1e-9


def test_tails_are_those_of_a_gaussian():
    values = secure_noise.standard_normal(KEY, 0, 0, 4_000_000)
    for sigmas in (3.0, 4.0, 5.0):
        expected = 2 * values.size * stats.norm.sf(sigmas)
        assert stats.poisson.interval(1 - 1e-4, expected)[0] <= (abs(values) > sigmas).sum()
        assert (abs(values) > sigmas).sum() <= stats.poisson.interval(1 - 1e-4, expected)[1]
    assert abs((values > 0).mean() - 0.5) < 4 * 0.5 / 2000
    assert len(np.unique(values)) == values.size  # one float32 draw takes 2^23 values only
    assert p_value(values[:100_000], 1.0) > 1e-3


WORDS = [0, 1, 2, 3, 2**63, 2**64 - 1, 2**64 - 2, 0x0123456789ABCDEF, 0xFEDCBA9876543210]


def test_every_bit_pattern_is_a_finite_value_at_its_place_in_the_distribution(monkeypatch):
    class Fixed:
        def __init__(self, message):
            pass

        def digest(self, size):
            return np.array(WORDS, "<u8").tobytes()[:size]

    monkeypatch.setattr(secure_noise.hashlib, "shake_256", Fixed)
    found = secure_noise.standard_normal(KEY, 0, 0, len(WORDS))
    for word, value in zip(WORDS, found, strict=True):
        place = float(Fraction(2 * (word >> 1) + 1, 2**65))  # in (0, 1/2], exact until here
        expected = stats.norm.ppf(place) * (1 if word & 1 else -1)
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15)
    assert 9.1 < abs(found).max() < 9.3


def test_noise_is_the_keyed_stream_and_nothing_else():
    words = np.frombuffer(
        hashlib.shake_256(KEY + (7).to_bytes(8, "little") + (2).to_bytes(8, "little")).digest(800),
        "<u8",
    )
    expected = [(1 if w & 1 else -1) * stats.norm.ppf(((w >> 1) + 0.5) * 2.0**-64) for w in words]
    found = secure_noise.standard_normal(KEY, 7, 2, 100)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_noise_is_independent_between_steps_leaves_and_secrets():
    twins = {"x": jnp.zeros(20_000), "y": jnp.zeros(20_000)}
    here, (there,) = released(twins, 3), released(twins, secret=KEY[::-1])
    assert abs(correlation(here[0]["x"], here[0]["y"])) < 4.5
    assert abs(correlation(here[0]["x"], here[1]["x"])) < 4.5
    assert abs(correlation(here[1]["x"], here[2]["x"])) < 4.5
    assert abs(correlation(here[0]["y"], here[1]["x"])) < 4.5
    assert abs(correlation(here[0]["x"], there["x"])) < 4.5
    assert abs(correlation(here[0]["x"][1:], here[0]["x"][:-1])) < 4.5
    assert correlation(here[0]["x"], here[0]["x"]) > 50  # the measure can fail


def test_noise_is_a_pure_function_of_secret_and_step():
    first, again = (SecureNoise(MECHANISM, KEY, ZEROS).draw(5) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_sum_and_noise_are_rounded_to_the_grid_and_added_without_error():
    rng = np.random.default_rng(0)
    leaf = np.float32(rng.normal(size=3000) * 10.0 ** rng.integers(-9, 4, 3000))
    noise = SecureNoise(MECHANISM, KEY, leaf)
    draw, release = noise.draw(0), noise.release()
    updates, _ = jax.jit(release.update)(leaf, release.init(leaf), draw=draw)
    assert np.log2(noise.grid) == np.round(np.log2(noise.grid))
    for value, steps, found in zip(leaf, draw.noise, np.asarray(updates), strict=True):
        rounded = round(Fraction(float(value)) / Fraction(noise.grid))
        exact = (rounded + int(steps)) * noise.grid / MECHANISM.expected_batch_size
        np.testing.assert_allclose(found, exact, rtol=2e-7)


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_rounding_is_part_of_the_sensitivity(size):
    """Neighbouring sums, also such that every coordinate is rounded the wrong way."""
    silent = MECHANISM.replace(noise_multiplier=0.0)
    noise = SecureNoise(silent, KEY, jnp.zeros(size))
    assert 1 + 2**-10 <= noise.sensitivity / silent.l2_clip_norm <= 1 + 2**-9
    rng = np.random.default_rng(size)
    start, direction = rng.normal(size=(2, size))
    steps = np.floor(silent.l2_clip_norm / np.sqrt(size) / noise.grid - 0.01)
    neighbours = [
        (start, start + direction * silent.l2_clip_norm / np.linalg.norm(direction)),
        # From right below one boundary between grid steps to right above another.
        (np.full(size, 0.499 * noise.grid), np.full(size, (steps + 0.501) * noise.grid)),
    ]
    for sums in neighbours:
        distance = np.linalg.norm(sums[1] - sums[0])
        assert distance <= silent.l2_clip_norm * (1 + 1e-9)
        (a,), (b,) = (released(jnp.float32(s), mechanism=silent) for s in sums)
        change = np.linalg.norm(np.float64(b) - np.float64(a)) * silent.expected_batch_size
        assert change <= noise.sensitivity * (1 + 1e-6)
    assert change > 1.0009 * distance  # rounding does add to it


def test_rounding_of_every_leaf_is_part_of_the_sensitivity():
    leaf = jnp.zeros(500)
    one, many = (SecureNoise(MECHANISM, KEY, like) for like in (jnp.zeros(2000), [leaf] * 4))
    assert one.sensitivity == many.sensitivity and one.grid == many.grid


@pytest.mark.parametrize("multiplier", [0.0, 1e-6, 1.0, 300.0, 1e4])
@pytest.mark.parametrize("root", [1, 100, 5000])
def test_int32_holds_sum_and_noise(multiplier, root):
    if multiplier * root > 2**24:
        root = 1000
    like = jax.ShapeDtypeStruct((root, root), jnp.float32)
    noise = SecureNoise(MECHANISM.replace(noise_multiplier=multiplier), KEY, like)
    largest = 9.3 * multiplier * noise.sensitivity / noise.grid
    assert 2**30 + largest < 2**31


def test_sums_beyond_the_grids_range_are_held_at_its_end():
    leaf = jnp.array([1e30, -1e30, 0.0], jnp.float32)
    silent = MECHANISM.replace(noise_multiplier=0.0)
    (found,) = released(leaf, mechanism=silent)
    end = 2**30 * SecureNoise(silent, KEY, leaf).grid / silent.expected_batch_size
    np.testing.assert_allclose(found, [end, -end, 0.0], rtol=1e-6)


def test_the_draw_of_another_step_is_noticed_and_none_is_refused():
    noise = SecureNoise(MECHANISM, KEY, ZEROS)
    release = noise.release()
    state = release.init(ZEROS)
    _, state = release.update(ZEROS, state, draw=noise.draw(0))
    for wrong in (0, 2):
        stale, _ = release.update(ZEROS, state, draw=noise.draw(wrong))
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(stale))
    with pytest.raises(TypeError, match="draw"):
        release.update(ZEROS, state)


def test_a_draw_of_other_shapes_is_refused():
    release = SecureNoise(MECHANISM, KEY, ZEROS).release()
    one = SecureNoise(MECHANISM, KEY, {**ZEROS, "x": jnp.zeros(1)}).draw(0)
    with pytest.raises(AssertionError):
        release.update(ZEROS, release.init(ZEROS), draw=one)


@pytest.mark.parametrize(
    ("changes", "secret", "words"),
    [
        ({}, b"short", "32 bytes"),
        ({"noise_multiplier": 1e6}, KEY, r"2\^24"),
    ],
)
def test_what_cannot_be_secure_is_refused(changes, secret, words):
    with pytest.raises(ValueError, match=words):
        SecureNoise(MECHANISM.replace(**changes), secret, ZEROS)


def test_sums_narrower_than_float32_are_refused():
    tree = {"x": jnp.zeros(3, jnp.bfloat16)}
    with pytest.raises(TypeError, match="bfloat16"):
        released(tree)


def test_the_released_mean_has_its_noise_and_repeats_on_resume():
    width, units = 20_000, 100
    values = np.zeros((units, width), np.float32)
    features = Packed.from_lengths(values, np.ones(units, np.int32))
    who = PrivacyUnits.of(make_dataset(patients=[str(i) for i in range(units)]), "report")
    mechanism = SubsampledGaussian(units, units, 1, 2.0, 3.0)
    found = [
        mean_feature(features, who, mechanism, RunSecret.create(seed), secure_noise=True) * units
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert p_value(found[0], 6.0) > 1e-3 and p_value(found[0], 5.4) < 1e-9
    assert abs(correlation(found[0], found[2])) < 4.5


def test_the_step_passes_the_draw_on_and_repeats_itself_after_a_restart():
    """A step without reports releases the noise of its own number, and nothing else."""
    adapters = {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)}
    release, draw = RunSecret.create(1).release(MECHANISM, "stage", adapters, secure=True)
    optimizer = optax.chain(release, optax.sgd(1.0))

    def loss(adapters, frozen, values, length, labels):
        return jnp.sum(values @ adapters["w"] + adapters["b"])

    buckets = Buckets((1,), (4,))
    step = jax.jit(make_train_step(loss, clipped_gradient_sum, optimizer, buckets))
    reports = Packed.from_lengths(np.ones((5, 4), np.float32), np.ones(5, np.int32))
    data = LabelledData(jax.tree.map(jnp.asarray, reports), jnp.zeros((5, 3), jnp.int8))

    def run(state, steps, drawn):
        for number in steps:
            plan = buckets.plan(np.asarray(drawn, int), np.ones(5, int), 8)
            state, _ = step(state, {}, data, plan, 0.25, **draw(number))
        return state

    start = TrainState(adapters, optimizer.init(adapters))
    whole = run(start, range(4), [0, 2])
    resumed = run(run(start, range(2), [0, 2]), range(2, 4), [0, 2])
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)

    grid = SecureNoise(MECHANISM, KEY, adapters).grid
    empty = run(start, [0], [])
    for name, steps in draw(0)["draw"].noise.items():
        expected = -steps * grid / MECHANISM.expected_batch_size
        np.testing.assert_allclose(empty.adapters[name], expected, rtol=1e-6)
    assert not np.isfinite(run(start, [1], []).adapters["w"]).any()


def test_a_run_uses_it_and_says_so(tmp_path):
    write_workspace(tmp_path)
    changes = dict(train__mode="head", head_stage__steps=0, centering__l2_clip_norm=None)
    changes |= dict(privacy__noise_multiplier=60.0, run__checkpoint_every=6)
    adapters = []
    for secure in (True, False):
        config = smoke_config(
            tmp_path, **changes, privacy__secure_noise=secure, run__name=f"{secure}"
        )
        monitor = Monitor(Console(file=io.StringIO()))
        result = train(config, resume=False, interrupt=Interrupt(), monitor=monitor)
        assert ("SHAKE-256" in result["privacy"]["noise_generator"]) == secure
        path = tmp_path / "runs" / f"{secure}" / "release/adapter/adapter_model.safetensors"
        adapters.append(safetensors.numpy.load_file(path))
    # The same secret gives other noise than without.
    assert all((adapters[0][name] != adapters[1][name]).any() for name in adapters[0])
