# SPDX-License-Identifier: Apache-2.0
"""A stage as it is put together: its own sample, bound and noise, one report of each unit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers_data import make_dataset
from helpers_training import write_backbone

from jaxdp import dp
from jaxdp.config import TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models import lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import Stage, make_optimizer
from jaxdp.training.trainer import StageMember, StageTrainer

HIDDEN, CLIP, BATCH = 16, 0.25, 8.0
SETTINGS = TrainConfig(
    mode="head", steps=3, expected_batch_size=BATCH, learning_rate=1.0, optimizer="sgd"
)


class Features:
    """In place of a `FrozenLayers`: the features are given."""

    def __init__(self, values):
        rows = Packed.from_lengths(np.float32(values), np.ones(len(values), np.int32))
        self.at = lambda level: {"train": rows}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    backbone = write_backbone(tmp_path_factory.mktemp("model") / "backbone")
    return load_classifier(backbone, 3, "mean", rngs=nnx.Rngs(0))[0]


def trainer(
    model, patients, *, units, noise=0.0, label=1, name="main stage", seed=0, without=0, **options
):
    """A stage of the head alone on large features, one report for each entry of `patients`, the
    last `without` of whom take no part."""
    who = PrivacyUnits.of(make_dataset(patients), "patient")
    offsets = who.offsets[: who.num_units + 1 - without]
    who = PrivacyUnits(who.unit, who.members[: offsets[-1]], offsets)
    mechanism = dp.SubsampledGaussian(units, BATCH, SETTINGS.steps, CLIP, noise)
    values = 10 * np.random.default_rng(0).standard_normal((len(patients), HIDDEN))
    stage = Stage(name, "head", SETTINGS, mechanism)
    return StageTrainer(
        [StageMember(stage, model, RunSecret.create(seed))],
        frozen_layers=Features(values),
        labels={"train": np.full((len(patients), 3), label, np.int8)},
        units=who,
        token_buckets=Buckets((16,), (4,)),
        **options,
    )


def taken(stage, steps=1):
    """The adapters after some steps."""
    return stage.after(steps).adapters


def drawn(stage, steps):
    """The reports of each step."""
    plans = [stage.plan(step).rows for step in range(steps)]
    return [rows[rows >= 0] for rows in plans]


def test_a_patient_moves_a_step_by_at_most_the_clip_norm_however_many_reports(model):
    ends = [taken(trainer(model, "aaabccdeeeeee", units=8, without=n)) for n in (0, 1)]
    change = jax.tree.map(lambda a, b: float(((a - b) ** 2).sum()), *ends)
    # All gradients are beyond the clip, so the bound is met.
    norm = np.sqrt(sum(jax.tree.leaves(change))) * BATCH
    assert norm == pytest.approx(CLIP, rel=1e-3)


@pytest.mark.parametrize("secure", [False, True])
def test_a_step_without_gradients_is_the_noise_of_its_stage_and_number(model, secure):
    options = dict(units=8, noise=3.0, label=-1, name="head stage", secure_noise=secure)
    found = taken(trainer(model, "abcdefgh", **options), 3)
    start = jax.tree.map(jnp.copy, lora.split(model, "head")[1])
    mechanism = dp.SubsampledGaussian(8, BATCH, 3, CLIP, 3.0)
    release, draw = RunSecret.create(0).release(mechanism, "head stage", start, secure=secure)
    optimizer, nothing = (
        optax.chain(release, make_optimizer(SETTINGS)),
        jax.tree.map(jnp.zeros_like, start),
    )
    state = optimizer.init(start)
    for step in range(3):
        updates, state = optimizer.update(nothing, state, start, **draw(step))
        start = optax.apply_updates(start, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, start)


def test_units_are_drawn_with_the_published_probability_whatever_their_number(model):
    patients = [str(i) for i in range(300)]
    sizes = [len(rows) for rows in drawn(trainer(model, patients, units=80), 200)]
    # Binomial(300, 8 / 80), and not 8 of 300.
    assert abs(np.mean(sizes) - 30) < 5 * np.sqrt(300 * 0.1 * 0.9 / 200)


def test_stages_and_runs_draw_samples_of_their_own_and_a_resumed_one_the_same(model):
    def samples(**options):
        stage = trainer(model, [str(i) for i in range(40)], units=16, **options)
        return [tuple(rows) for rows in drawn(stage, 5)]

    assert samples() == samples()
    everything = {*samples(), *samples(name="head stage"), *samples(seed=1)}
    assert len(everything) == 15
