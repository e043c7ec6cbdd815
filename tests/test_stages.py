# SPDX-License-Identifier: Apache-2.0
"""The plan: every stage has its own numbers, and together they cost what was asked for."""

import math

import pytest
from helpers_training import smoke_config

from jaxdp import dp
from jaxdp.config import ConfigError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.train import train
from jaxdp.training.stages import plan_run

OWN = dict(
    centering__l2_clip_norm=4.0,
    head_stage__l2_clip_norm=0.3,
    head_stage__noise_multiplier=70.0,
    privacy__l2_clip_norm=0.2,
    privacy__noise_multiplier=60.0,
)


def test_every_stage_has_its_own_clip_norm_batch_steps_and_noise(tmp_path):
    config = smoke_config(tmp_path, **OWN)
    mean, head, main = plan_run(config).mechanisms().values()
    assert mean == dp.SubsampledGaussian(96, 96, 1, 4.0, mean.noise_multiplier)
    assert head == dp.SubsampledGaussian(96, 24, 4, 0.3, 70.0)
    assert main == dp.SubsampledGaussian(96, 16, 6, 0.2, 60.0)
    assert 0.99 * 0.05 < dp.epsilon_pld([mean], 1e-3) <= 0.05  # a tenth of 0.5


def test_plan_composes_to_the_target(tmp_path):
    plan = plan_run(smoke_config(tmp_path))
    assert list(plan.mechanisms()) == ["feature mean", "head stage", "main stage"]
    assert 0.49 < dp.epsilon_pld(list(plan.mechanisms().values()), 1e-3) <= 0.5
    assert dp.epsilon_pld([plan.mechanisms()["head stage"]], 1e-3) <= 0.25
    taken = plan.mechanisms(0, 3)
    assert {name: m.steps for name, m in taken.items()} == {"feature mean": 1, "head stage": 3}
    taken = plan.mechanisms(1, 2)
    assert [m.steps for m in taken.values()] == [1, 4, 2]


@pytest.mark.parametrize("epsilon", [None, math.inf])
def test_without_privacy_nothing_is_released(tmp_path, epsilon):
    plan = plan_run(smoke_config(tmp_path, privacy__epsilon=epsilon))
    assert plan.mechanisms() == {} and plan.centering is None
    assert [(s.name, s.mechanism) for s in plan.stages] == [
        ("head stage", None), ("main stage", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(privacy__noise_multiplier=1.0), "cost"),
        (dict(head_stage__noise_multiplier=1.0), "other stages already cost"),
        (dict(privacy__epsilon=60.0), "epsilon must be in"),
        (dict(centering__l2_clip_norm=1e30), "^config.centering: l2_clip_norm must be in"),
    ],
)
def test_unreachable_targets_are_refused_before_data_is_read(tmp_path, changes, words):
    changes = dict(data__root="/nowhere", centering__l2_clip_norm=None) | changes
    config = smoke_config(tmp_path, **changes)
    with pytest.raises(ConfigError, match=words):
        train(config, resume=False, interrupt=Interrupt(), monitor=SilentMonitor())
