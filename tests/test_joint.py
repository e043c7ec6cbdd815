# SPDX-License-Identifier: Apache-2.0
"""Joint accounting: what is claimed for members that share samples is what they cost, no less."""

import math

import numpy as np
import pytest
from dp_accounting import pld

from jaxdp.dp import (
    Ledger,
    SubsampledGaussian,
    epsilon_pld,
    joint_mechanisms,
    joint_noise_multiplier,
)
from jaxdp.dp.accounting import composed_event

DELTA = 1e-5
STAGE = SubsampledGaussian(
    units=1000, expected_batch_size=20, steps=500, l2_clip_norm=0.1, noise_multiplier=2.0
)


def member(noise: float, **changes) -> dict[str, SubsampledGaussian]:
    return {"main stage": STAGE.replace(noise_multiplier=noise, **changes)}


def delta_pld(mechanisms, epsilon: float) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=1e-4)
    return accountant.compose(composed_event(mechanisms)).get_delta(epsilon)


def test_one_member_alone_costs_what_it_costs():
    (joint,) = joint_mechanisms([member(2.0)]).values()
    assert joint == STAGE.replace(l2_clip_norm=1.0)
    assert epsilon_pld([joint], DELTA) == epsilon_pld([STAGE], DELTA)


@pytest.mark.parametrize("count", [2, 4, 12])
def test_equal_members_are_one_with_less_noise(count):
    (joint,) = joint_mechanisms([member(6.0)] * count).values()
    assert joint.noise_multiplier == pytest.approx(6.0 / math.sqrt(count), rel=1e-15)
    assert joint.steps == STAGE.steps and joint.sampling_probability == 0.02


def test_the_designs_numbers():
    members = [member(2.0, l2_clip_norm=0.3), member(3.0)]
    own = [epsilon_pld(list(m.values()), DELTA) for m in members]
    shared = epsilon_pld(list(joint_mechanisms(members).values()), DELTA)
    independent = epsilon_pld([s for m in members for s in m.values()], DELTA)
    assert [*own, shared, independent] == pytest.approx([0.92, 0.56, 1.18, 1.10], abs=0.006)


# A toy whose answers are far apart: half of the units in each of 3 steps, two members.
Q, SIGMAS, STEPS, EPSILON = 0.5, (1.0, 1.4), 3, 1.0
TOY = SubsampledGaussian(
    units=2, expected_batch_size=1, steps=STEPS, l2_clip_norm=1.0, noise_multiplier=SIGMAS[0]
)
TOYS = [{"s": TOY.replace(noise_multiplier=s)} for s in SIGMAS]


def log_ratio(outputs: np.ndarray) -> np.ndarray:
    """log p(with the unit) / p(without) of [..., 2] outputs of one step, from the two-dimensional
    densities: the unit moves both members, or neither."""
    moved = ((2 * outputs - 1) / (2 * np.square(SIGMAS))).sum(-1)  # log N(1) / N(0) of each
    return np.logaddexp(np.log1p(-Q), np.log(Q) + moved)


def simulated_delta(draws: int = 400_000) -> tuple[float, float]:
    """(delta at EPSILON of all STEPS steps, its standard error): the larger hockey-stick divergence
    of the two directions, by drawing from the real joint mechanism."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(draws, STEPS, 2)) * SIGMAS
    taken = rng.random((draws, STEPS, 1)) < Q  # one draw for both members
    found = []
    for outputs, sign in ((noise + taken, 1), (noise, -1)):
        loss = sign * log_ratio(outputs).sum(-1)
        excess = np.maximum(0, 1 - np.exp(EPSILON - loss))
        found.append((excess.mean(), excess.std() / math.sqrt(draws)))
    return max(found)


def test_the_joint_mechanism_costs_exactly_what_is_claimed():
    delta, error = simulated_delta()
    assert error < 0.01 * delta
    claimed = delta_pld(list(joint_mechanisms(TOYS).values()), EPSILON)
    assert claimed == pytest.approx(delta, abs=4 * error + 1e-4)
    # What is not true is told apart: the dearest member's own cost, samples of their own, and the
    # noise of one Gaussian that is added up or averaged.
    for wrong in (
        list(TOYS[0].values()),
        [stage for toy in TOYS for stage in toy.values()],
        [TOY.replace(noise_multiplier=1 / sum(1 / s for s in SIGMAS))],
        [TOY.replace(noise_multiplier=joint_noise_multiplier(SIGMAS) * math.sqrt(2))],
    ):
        assert abs(delta_pld(wrong, EPSILON) - delta) > 20 * error + 1e-4


def test_one_step_by_integration():
    """Two-dimensional, on a grid: no sampling error."""
    axes = [np.linspace(-9 * s, 9 * s + 1, 1501) for s in SIGMAS]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    cell = math.prod(axis[1] - axis[0] for axis in axes)
    apart = np.exp(-np.square(grid / SIGMAS).sum(-1) / 2) / (2 * math.pi * math.prod(SIGMAS))
    ratio = np.exp(log_ratio(grid))
    deltas = [
        cell * np.maximum(apart * ratio - math.exp(EPSILON) * apart, 0).sum(),
        cell * np.maximum(apart - math.exp(EPSILON) * apart * ratio, 0).sum(),
    ]
    (joint,) = joint_mechanisms([{"s": t["s"].replace(steps=1)} for t in TOYS]).values()
    assert delta_pld([joint], EPSILON) == pytest.approx(max(deltas), rel=2e-3)


def test_stages_are_joined_one_by_one():
    mean = STAGE.replace(expected_batch_size=1000, steps=1)
    members = [
        {"feature mean": mean.replace(noise_multiplier=s), **member(2 * s)} for s in (3.0, 4.0)
    ]
    joint = joint_mechanisms([*members, member(10.0)])  # the last one releases no mean
    assert list(joint) == ["feature mean", "main stage"]
    assert joint["feature mean"].noise_multiplier == pytest.approx(2.4)
    assert joint["main stage"].noise_multiplier == pytest.approx(
        (1 / 36 + 1 / 64 + 1 / 100) ** -0.5
    )


def test_steps_that_only_some_take_are_joint_among_those():
    joint = joint_mechanisms([member(3.0, steps=10), member(4.0, steps=30), member(9.0, steps=0)])
    assert {name: m.steps for name, m in joint.items()} == {
        "main stage, steps 1 to 10": 10,
        "main stage, steps 11 to 30": 20,
    }
    first, rest = joint.values()
    assert first.noise_multiplier == pytest.approx(2.4) and rest.noise_multiplier == 4.0


def test_what_cannot_share_a_sample_is_refused():
    with pytest.raises(ValueError, match="main stage: .* same units and batch size"):
        joint_mechanisms([member(2.0), member(2.0, expected_batch_size=21)])
    with pytest.raises(ValueError, match="same units"):
        joint_mechanisms([member(2.0), member(2.0, units=1001)])


def test_a_member_without_noise_leaves_nothing_to_claim():
    (joint,) = joint_mechanisms([member(2.0), member(0.0)]).values()
    assert joint.noise_multiplier == 0.0 and epsilon_pld([joint], DELTA) == math.inf
    assert joint_mechanisms([]) == {}


def test_a_group_enters_a_ledger_as_its_joint_mechanisms(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    joint = joint_mechanisms([member(2.0), member(3.0)])
    ledger.plan("data", "group", joint)
    ledger.plan("data", "another group", member(3.0))
    together = [*joint.values(), STAGE.replace(noise_multiplier=3.0)]
    assert ledger.epsilon("data", DELTA) == epsilon_pld(together, DELTA)
