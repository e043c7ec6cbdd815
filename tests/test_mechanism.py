# SPDX-License-Identifier: Apache-2.0
"""The mechanism object: derived numbers, event, and refusal of what would void the guarantee."""

import dp_accounting
import numpy as np
import pytest

from jaxdp.dp import PoissonSampler, SubsampledGaussian

MECHANISM = SubsampledGaussian(
    units=1000, expected_batch_size=50, steps=7, l2_clip_norm=0.5, noise_multiplier=3.0
)


def test_derived_numbers():
    assert MECHANISM.sampling_probability == 0.05
    assert MECHANISM.stddev == 1.5  # on the sum: multiplier times clip norm, not over the batch


def test_event_is_the_poisson_sampled_gaussian_steps_times():
    assert MECHANISM.dp_event == dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(3.0)), 7
    )


def test_event_without_sampling_is_the_plain_gaussian():
    full = MECHANISM.replace(expected_batch_size=1000)
    assert full.dp_event == dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), 7)


def test_event_of_no_steps_is_no_event():
    assert MECHANISM.replace(steps=0).dp_event == dp_accounting.NoOpDpEvent()


def test_event_does_not_depend_on_the_clip_norm():
    assert MECHANISM.replace(l2_clip_norm=9.0).dp_event == MECHANISM.dp_event


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("units", 0),
        ("units", 1000.0),
        ("expected_batch_size", 0),
        ("expected_batch_size", -1),
        ("expected_batch_size", 1001),  # q > 1
        ("expected_batch_size", np.nan),
        ("steps", -1),
        ("steps", 1.5),
        ("l2_clip_norm", 0.0),
        ("l2_clip_norm", np.inf),
        ("l2_clip_norm", np.nan),
        ("l2_clip_norm", 1e-20),  # its square underflows float32: norms would read as 0
        ("l2_clip_norm", 1e39),  # infinite in float32: nothing would be clipped
        ("noise_multiplier", -0.1),
        ("noise_multiplier", np.nan),
        ("noise_multiplier", np.inf),
    ],
)
def test_out_of_range_is_refused_and_named(field, value):
    with pytest.raises(ValueError, match=field):
        MECHANISM.replace(**{field: value})


def test_accepts_numpy_integers():
    assert MECHANISM.replace(steps=np.int64(7)).dp_event == MECHANISM.dp_event


def test_is_frozen():
    with pytest.raises(AttributeError):
        MECHANISM.noise_multiplier = 0.0


def test_sampler_and_accountant_share_the_probability():
    """Accounting must match sampling: the sampler is built from the mechanism's own number."""
    sampler = PoissonSampler(1, MECHANISM.sampling_probability, MECHANISM.units)
    event = MECHANISM.dp_event.event
    assert sampler.sampling_probability == event.sampling_probability
    drawn = np.mean([len(sampler.sample(step)) for step in range(2000)])
    # 2000 binomial(1000, q) draws: the mean is within 5 of its standard errors.
    error = np.sqrt(1000 * event.sampling_probability * (1 - event.sampling_probability) / 2000)
    assert abs(drawn - 1000 * event.sampling_probability) < 5 * error
