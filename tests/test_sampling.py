# SPDX-License-Identifier: Apache-2.0
"""The Poisson sampler: pure, independent, and really Poisson, by tests that reject the near misses.

Statistical tests use fixed seeds, so they either pass always or never; each is also shown to reject
a sampler that is slightly wrong.
"""

import numpy as np
import pytest
from scipy import stats

from jaxdp.dp import PoissonSampler

SEED = 0x5EED_0123_4567_89AB_CDEF


def batch_sizes(probability: float, units: int = 2000, steps: int = 4000) -> np.ndarray:
    sampler = PoissonSampler(SEED, probability, units)
    return np.array([len(sampler.sample(step)) for step in range(steps)])


def p_value_of_sizes(sizes: np.ndarray, probability: float, units: int = 2000) -> float:
    """Chi-squared test of batch sizes against Binomial(units, probability), 20 equal bins."""
    edges = stats.binom.ppf(np.linspace(0, 1, 21)[1:-1], units, probability)
    cdf = np.concatenate([[0], stats.binom.cdf(edges, units, probability), [1]])
    observed = np.bincount(np.searchsorted(edges, sizes, side="left"), minlength=20)
    return stats.chisquare(observed, np.diff(cdf) * len(sizes)).pvalue


def test_batch_sizes_are_binomial():
    assert p_value_of_sizes(batch_sizes(0.05), 0.05) > 1e-3


@pytest.mark.parametrize("factor", [0.98, 1.02])
def test_a_probability_off_by_two_percent_is_noticed(factor):
    assert p_value_of_sizes(batch_sizes(0.05 * factor), 0.05) < 1e-6


def test_batches_of_fixed_size_are_noticed():
    assert p_value_of_sizes(np.full(4000, 100), 0.05) < 1e-6


def test_every_unit_is_as_likely_as_every_other():
    sampler = PoissonSampler(SEED, 0.1, 500)
    times = np.zeros(500)
    for step in range(3000):
        times[sampler.sample(step)] += 1
    # 500 binomial(3000, 0.1) counts; their spread too must be binomial (a shuffle's would be less).
    chi = ((times - 300) ** 2 / (3000 * 0.1 * 0.9)).sum()
    assert 1e-3 < stats.chi2.cdf(chi, 500) < 1 - 1e-3


def test_units_and_steps_are_independent():
    """A unit's taking part says nothing about its neighbours, nor about the next step."""
    sampler = PoissonSampler(SEED, 0.5, 400)
    drawn = np.zeros((400, 400))
    for step in range(400):
        drawn[step, sampler.sample(step)] = 1
    drawn -= 0.5
    # Products of independent +-1/2 have standard deviation 1/4.
    for products in (drawn[:, 1:] * drawn[:, :-1], drawn[1:] * drawn[:-1]):
        assert abs(products.sum()) < 4.5 * 0.25 * np.sqrt(products.size)


def test_draws_of_different_steps_never_coincide():
    sampler = PoissonSampler(SEED, 0.5, 200)
    batches = {tuple(sampler.sample(step)) for step in range(2000)}
    assert len(batches) == 2000


def test_is_a_pure_function_of_seed_and_step():
    sampler, again = PoissonSampler(SEED, 0.3, 100), PoissonSampler(SEED, 0.3, 100)
    forwards = [sampler.sample(step) for step in range(20)]
    backwards = [again.sample(step) for step in reversed(range(20))][::-1]
    for a, b in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
    other = PoissonSampler(SEED + 1, 0.3, 100)
    assert any(len(a) != len(other.sample(i)) for i, a in enumerate(forwards))


def test_one_unit_more_changes_nobody_elses_draw():
    """Add/remove adjacency needs the others' participation to be the same with and without."""
    with_it, without = PoissonSampler(SEED, 0.3, 101), PoissonSampler(SEED, 0.3, 100)
    for step in range(20):
        drawn = with_it.sample(step)
        np.testing.assert_array_equal(drawn[drawn < 100], without.sample(step))


@pytest.mark.parametrize("bit", [0, 63, 64, 127])
def test_every_bit_of_the_seed_counts(bit):
    drawn = (PoissonSampler(seed, 0.5, 200).sample(0) for seed in (SEED, SEED ^ 1 << bit))
    assert tuple(next(drawn)) != tuple(next(drawn))


def test_values_do_not_change_between_versions():
    """Golden: changing these breaks resuming runs of older versions, and must be said aloud."""
    sampler = PoissonSampler(7, 0.25, 12)
    assert [list(map(int, sampler.sample(step))) for step in range(3)] == [
        [4, 8],
        [2, 5, 7, 10],
        [5, 7, 11],
    ]


def test_probability_one_takes_everyone():
    for step in range(50):
        np.testing.assert_array_equal(PoissonSampler(SEED, 1.0, 30).sample(step), np.arange(30))


def test_no_units_and_empty_draws():
    assert PoissonSampler(SEED, 0.5, 0).sample(0).shape == (0,)
    drawn = [PoissonSampler(SEED, 1e-6, 100).sample(step) for step in range(20)]
    assert all(d.shape == (0,) and d.dtype == np.int64 for d in drawn)


def test_choice_is_uniform_in_range_and_fresh_each_step():
    counts = np.array([1, 2, 3, 7, 0])
    sampler = PoissonSampler(SEED, 0.5, 5)
    chosen = np.array([sampler.choose(step, counts) for step in range(3000)])
    assert chosen.dtype == np.int64
    assert (chosen[:, 0] == 0).all() and (chosen[:, 4] == -1).all()
    for unit in (1, 2, 3):
        observed = np.bincount(chosen[:, unit], minlength=counts[unit])
        assert len(observed) == counts[unit]
        assert stats.chisquare(observed).pvalue > 1e-3


def test_choice_is_independent_of_taking_part():
    sampler = PoissonSampler(SEED, 0.5, 1000)
    table = np.zeros((2, 2))
    for step in range(20):
        takes_part = np.isin(np.arange(1000), sampler.sample(step))
        chosen = sampler.choose(step, np.full(1000, 2))
        np.add.at(table, (takes_part.astype(int), chosen), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1, 0.5, 10), "seed"),
        ((2**128, 0.5, 10), "seed"),
        ((0, 0.0, 10), "sampling_probability"),
        ((0, 1.01, 10), "sampling_probability"),
        ((0, float("nan"), 10), "sampling_probability"),
        ((0, 0.5, -1), "num_units"),
    ],
)
def test_out_of_range_is_refused_and_named(arguments, field):
    with pytest.raises(ValueError, match=field):
        PoissonSampler(*arguments)


def test_negative_step_is_refused():
    with pytest.raises(ValueError, match="step"):
        PoissonSampler(0, 0.5, 10).sample(-1)


def test_the_seed_is_not_printed():
    assert str(SEED) not in repr(PoissonSampler(SEED, 0.5, 10))
