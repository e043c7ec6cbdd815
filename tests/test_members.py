# SPDX-License-Identifier: Apache-2.0
"""Members in one program: each is what it would be alone, whoever else is in it."""

import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.parquet
import pytest
import safetensors.numpy
import test_step as one
import test_warm_start
from flax import nnx
from helpers_sweep import tiny_sweep, write_sweep_file
from helpers_training import AtTheFirstStep, start_script, write_backbone
from helpers_xla import AS_USERS_DO

from jaxdp import dp
from jaxdp.config import TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models.lora import LoRALinear, add_lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.run.checkpoint import Checkpoints
from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.train import Interrupted
from jaxdp.sweep import execute
from jaxdp.sweep.accounting import plan_sweep
from jaxdp.sweep.directory import begin
from jaxdp.sweep.execute import run_group
from jaxdp.sweep.history import read_history
from jaxdp.sweep.members import expand, programs
from jaxdp.sweep.results import results_table
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.members import CannotShare, share_frozen, stack, stack_differing, unstack
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import Stage, make_optimizer
from jaxdp.training.step import TrainState, make_train_step
from jaxdp.training.trainer import StageMember, StageTrainer

# The step.

float64 = one.float64
CLIPS, MULTIPLIERS, RATES = (0.15, 0.6, 1e3), (2.0, 0.5, 1.0), (0.3, 0.1, 1e-3)
MECHANISMS = [
    one.MECHANISM.replace(l2_clip_norm=c, noise_multiplier=m)
    for c, m in zip(CLIPS, MULTIPLIERS, strict=True)
]


def member_optimizer(member: int, kind: str = "adam", schedule: str = "linear"):
    settings = TrainConfig(steps=5, learning_rate=RATES[member], optimizer=kind, schedule=schedule)
    release = dp.add_noise_and_average(MECHANISMS[member], jax.random.key(member))
    return optax.chain(release, make_optimizer(settings))


def member_start(member: int):
    adapters, frozen, data = one.problem()
    adapters = jax.tree.map(lambda a: a + 0.1 * member, adapters)
    return TrainState(adapters, member_optimizer(member).init(adapters)), frozen, data


def together(members, batches):
    """Adapters of each after a step for each batch, all in one program."""
    starts = [member_start(m) for m in members]
    state, (_, frozen, data) = stack([s for s, _, _ in starts]), starts[0]
    clips = jnp.array([CLIPS[m] for m in members])
    step = make_train_step(
        one.loss_fn, dp.clipped_gradient_sum, member_optimizer(members[0]), one.BUCKETS
    )
    step = jax.jit(jax.vmap(step, (0, None, None, None, 0)))
    for batch in batches:
        plan = one.BUCKETS.plan(
            np.asarray(batch, int), np.asarray(data.reports.lengths), one.CAPACITY
        )
        state, _ = step(state, frozen, data, plan, clips)
    return dict(zip(members, unstack(state.adapters, len(members)), strict=True))


def alone(member, batches):
    """The oracle: a step of its own, with constants in it."""
    state, frozen, data = member_start(member)
    step = jax.jit(
        make_train_step(one.loss_fn, dp.clipped_gradient_sum, member_optimizer(member), one.BUCKETS)
    )
    for batch in batches:
        plan = one.BUCKETS.plan(
            np.asarray(batch, int), np.asarray(data.reports.lengths), one.CAPACITY
        )
        state, _ = step(state, frozen, data, plan, CLIPS[member])
    return state.adapters


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_every_member_is_what_it_is_alone_whoever_else_is_there():
    batches = one.BATCHES[:3]
    all_three = together((0, 1, 2), batches)
    two = together((2, 0), batches)
    for member in (0, 1, 2):
        wanted = alone(member, batches)
        one.assert_trees_close(all_three[member], wanted)
        if member in two:
            one.assert_trees_close(two[member], wanted)
    # A clip norm that is shared, a rate or a key would make them alike.
    kernels = [np.asarray(all_three[m]["inner"]) for m in (0, 1, 2)]
    assert all(np.abs(a - b).max() > 1e-2 for a, b in zip(kernels, kernels[1:], strict=False))


def test_noise_is_the_members_own_in_key_and_size():
    like = jnp.zeros(20_000)
    mechanisms = [*MECHANISMS, MECHANISMS[0]]  # the last differs from the first in its key alone
    releases = [dp.add_noise_and_average(m, jax.random.key(i)) for i, m in enumerate(mechanisms)]
    state = stack([r.init(like) for r in releases])
    update = jax.jit(jax.vmap(releases[0].update, (None, 0)))
    noise, state = update(like, state)
    later, _ = update(like, state)
    noise = np.asarray(noise) * one.MECHANISM.expected_batch_size
    for row, mechanism in zip(noise, mechanisms, strict=True):
        # The standard error of a standard deviation is sigma / sqrt(2 n).
        assert abs(row.std() / mechanism.stddev - 1) < 5 / np.sqrt(2 * like.size)
    everything = np.concatenate([noise, np.asarray(later)])
    correlations = np.corrcoef(everything) - np.eye(len(everything))
    assert np.abs(correlations).max() < 5 / np.sqrt(like.size)
    # Alone, the same bits.
    for i, release in enumerate(releases):
        own, _ = jax.jit(release.update)(like, release.init(like))
        np.testing.assert_array_equal(noise[i], np.asarray(own) * 8)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_optimizer_is_optaxs_to_the_last_bit(kind, schedule):
    rate, steps = 3e-4, 7
    theirs = {
        "constant": lambda: rate,
        "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
        "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
    }[schedule]()
    theirs = {"adam": optax.adam, "sgd": lambda r: optax.sgd(r, momentum=0.9)}[kind](theirs)
    ours = make_optimizer(
        TrainConfig(steps=steps, learning_rate=rate, optimizer=kind, schedule=schedule)
    )
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=100), jnp.float32)
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    for _ in range(steps + 1):
        gradient = jnp.asarray(rng.normal(size=100), jnp.float32)
        updates = []
        for i, optimizer in enumerate((ours, theirs)):
            step = jax.jit(optimizer.update, compiler_options=AS_USERS_DO)
            update, states[i] = step(gradient, states[i], params)
            updates.append(np.asarray(update))
        np.testing.assert_array_equal(*updates)


# What is one object in all models is kept once.


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("model") / "backbone")


def member_model(backbone, seed, pooling="mean"):
    model = load_classifier(backbone, 3, pooling, rngs=nnx.Rngs(seed))[0]
    add_lora(model, rank=2, alpha=4, targets=["query", "value"], rngs=nnx.Rngs(seed), first_layer=1)
    return model


def test_frozen_weights_are_kept_once_and_what_each_has_drawn_is_not(backbone):
    models = [member_model(backbone, seed) for seed in range(3)]
    for model in models[1:]:
        share_frozen(models[0], model)
    states = [nnx.state(m, nnx.Not(nnx.PathContains("classifier"))) for m in models]
    tree, axes = stack_differing(states)
    leaves, axes = nnx.to_flat_state(tree), jax.tree.leaves(axes, is_leaf=lambda a: a is None)
    for (path, leaf), axis, own in zip(leaves, axes, jax.tree.leaves(states[0]), strict=True):
        drawn = path[-1] == "lora_a"
        assert axis == (0 if drawn else None), path
        assert drawn or leaf[...] is own, path
    other = member_model(backbone, 5)
    adapted = [m for _, m in nnx.iter_modules(other) if isinstance(m, LoRALinear)]
    adapted[0].base.kernel[...] = adapted[0].base.kernel[...] + 1
    with pytest.raises(CannotShare, match="base.kernel"):
        share_frozen(models[0], other)


def test_adapters_that_act_must_be_the_same(backbone):
    """Where they are frozen, reports are carried through those of one member for all."""
    first, same, apart = (member_model(backbone, seed) for seed in (0, 0, 1))
    for model in (first, same, apart):
        adapted = [m for _, m in nnx.iter_modules(model) if isinstance(m, LoRALinear)]
        adapted[0].lora_b[...] = adapted[0].lora_b[...] + 1
    share_frozen(first, same)
    with pytest.raises(CannotShare, match="lora_a"):
        share_frozen(first, apart)


N = 40
BUCKETS = Buckets((16, 8), (2, 4))


def stage_members(backbone, numbers, centered=True):
    """What trains in one program: members that differ in everything that may differ."""
    models = [member_model(backbone, m) for m in numbers]
    for model in models[1:]:
        share_frozen(models[0], model)
    members = []
    for number, model in zip(numbers, models, strict=True):
        mechanism = dp.SubsampledGaussian(N, 12, 3, 0.05 * 2**number, 0.5 + 0.1 * number)
        settings = TrainConfig(
            steps=3, expected_batch_size=12.0, learning_rate=1e-3 * (1 + number), schedule="linear"
        )
        stage = Stage("main stage", "lora-ffa", settings, mechanism)
        secret = RunSecret(RunSecret.create(number).root, bytes(32))
        center = np.full(16, 0.1 * number, np.float32) if centered else 0.0
        members.append(StageMember(stage, model, secret, center))
    return members


def trainer_of(members, mesh=None, buckets=BUCKETS):
    """The real trainer of some members, on made-up token ids."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, N)
    tokens = Packed.from_lengths(rng.integers(5, 19, lengths.sum()).astype(np.int32), lengths)
    labels = rng.integers(0, 2, (N, 3)).astype(np.int8)
    splits = {"train": tokens, "validation": tokens}
    return StageTrainer(
        members,
        frozen_layers=FrozenLayers(members[0].model, splits, BUCKETS),
        labels={"train": labels},
        units=PrivacyUnits("report", np.arange(N), np.arange(N + 1)),
        token_buckets=buckets,
        mesh=mesh,
    )


def stage_trainer(backbone, members, mode="lora-ffa", mesh=None, centered=True, buckets=BUCKETS):
    """(trainer, models) of some members in another stage, or on other devices."""
    members = [
        dataclasses.replace(each, stage=dataclasses.replace(each.stage, mode=mode))
        for each in stage_members(backbone, members, centered)
    ]
    return trainer_of(members, mesh, buckets), [each.model for each in members]


def trained(trainer, models):
    """(validation probabilities, adapters) of each member after three steps."""
    state = trainer.after(3)
    found = trainer.each(trainer.validation_probabilities(state))
    trainer.install(state)
    drawn = nnx.Any(nnx.LoRAParam, nnx.PathContains("classifier"))
    weights = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(nnx.state(model, drawn))])
        for model in models
    ]
    return list(zip(found, weights, strict=True))


# float32: sums in another order, and Adam's division by small second moments.
ROUNDING = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [pytest.param("lora-ffa", marks=pytest.mark.slow), "head"])
def test_a_stage_of_members_is_the_stage_of_each(backbone, mode):
    members = (0, 1, 2)
    found = trained(*stage_trainer(backbone, members, mode))
    for member, (probabilities, weights) in zip(members, found, strict=True):
        ((wanted, wanted_weights),) = trained(*stage_trainer(backbone, (member,), mode))
        np.testing.assert_allclose(probabilities, wanted, **ROUNDING)
        np.testing.assert_allclose(weights, wanted_weights, **ROUNDING)
    assert np.abs(found[0][0] - found[1][0]).max() > 1e-3


@pytest.mark.parametrize("numbers", [(1,), pytest.param((0, 1), marks=pytest.mark.slow)])
def test_a_stage_whose_reports_share_rows_is_the_stage_of_reports_alone(backbone, numbers):
    shared = Buckets((24,), (2,), (3,))
    both = [stage_trainer(backbone, numbers, "lora", buckets=b) for b in (shared, BUCKETS)]
    # What people are shown of a step is of its reports, wherever these stand in the plan.
    by_report = []
    for trainer, _ in both:
        plan = trainer.plan(0)
        start = jax.tree.map(jnp.copy, trainer.initial_state)  # which a step uses up
        _, diagnostics = trainer.step(start, 0, plan)
        read, reports, _ = trainer.describe(plan, diagnostics)
        drawn = plan.rows[plan.rows >= 0]
        assert read.loss.shape[-1] == reports == len(drawn)
        by_report.append([np.asarray(x)[..., np.argsort(drawn)] for x in read])
    np.testing.assert_allclose(*by_report, **ROUNDING)
    found, wanted = (trained(*each) for each in both)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0], **ROUNDING)
        np.testing.assert_allclose(ours[1], theirs[1], **ROUNDING)


def test_members_that_do_not_fit_one_program_are_refused(backbone):
    first, second = stage_members(backbone, (0, 1))
    stage, settings = second.stage, second.stage.settings
    for other in (
        dataclasses.replace(second, secret=RunSecret(bytes(32), bytes(range(32)))),
        dataclasses.replace(second, stage=dataclasses.replace(stage, mechanism=None)),
        dataclasses.replace(
            second,
            stage=dataclasses.replace(
                stage, settings=dataclasses.replace(settings, optimizer="sgd")
            ),
        ),
    ):
        with pytest.raises(ValueError, match="share samples"):
            trainer_of([first, other])


def test_a_mesh_takes_what_divides():
    assert make_mesh(1, 12).shape == {"member": 1, "data": 1}


# Whole groups.


def run_sweep(sweep, interrupt=None):
    plan = plan_sweep(sweep)
    begin(plan)
    for index in range(len(plan.groups)):
        run_group(sweep.path, index, interrupt or Interrupt())
    return plan


def adapters(plan):
    return {
        name: safetensors.numpy.load_file(
            member.path / "release" / "adapter" / "adapter_model.safetensors"
        )
        for name, member in plan.members.items()
    }


AXES = {
    "privacy.epsilon": (0.5, 0.8),
    "train.learning_rate, privacy.l2_clip_norm": [(1e-3, 0.5), (4e-3, 0.1)],
}


@pytest.mark.slow
@pytest.mark.parametrize("public_start", [False, True])
def test_a_group_gives_each_member_what_it_gets_alone(workspace, public_start, monkeypatch):
    axes = AXES
    if public_start:  # which is then made once for all; the head alone is private
        (workspace / "book.json").write_text(json.dumps(test_warm_start.BOOK))
        changes = test_warm_start.settings(str(workspace / "book.json"), steps=3)
        changes |= {"train__mode": "head", "head_stage__steps": 0}
        axes = AXES | {name.replace("__", "."): (value,) for name, value in changes.items()}
    together = run_sweep(tiny_sweep(workspace, axes=axes, seeds=1))
    monkeypatch.setattr(execute, "programs", lambda group: [[member] for member in group])
    apart = run_sweep(tiny_sweep(workspace, axes=axes, seeds=1, name="apart"))
    assert list((together.sweep.path / "private" / "group0-0").glob("*-6"))
    assert not (apart.sweep.path / "private" / "group0-0").exists()
    wanted = adapters(apart)
    for name, found in adapters(together).items():
        member, other = together.members[name], apart.members[name]
        for tensor in found:
            np.testing.assert_allclose(found[tensor], wanted[name][tensor], atol=5e-6, err_msg=name)
        statements = [
            json.loads((m.path / "release" / "privacy.json").read_text()) for m in (member, other)
        ]
        assert statements[0] == statements[1]
        assert statements[0]["epsilon"] == together.plans[name].epsilon()
        answers = [np.load(m.path / "private" / "test_predictions.npz") for m in (member, other)]
        for key in answers[0]:
            if answers[0][key].dtype.kind == "f":
                np.testing.assert_allclose(answers[0][key], answers[1][key], atol=1e-5)
        events = read_history(member.path)
        assert [e["members"] for e in events if e["event"] == "attempt"] == [4]
        assert events[-1]["event"] == "finished"


@pytest.mark.slow
def test_a_group_that_was_stopped_goes_on_to_the_same_bits(workspace):
    axes = {"privacy.epsilon": (0.5, 0.8)}
    wanted = adapters(run_sweep(tiny_sweep(workspace, axes=axes, seeds=1, name="undisturbed")))
    sweep = tiny_sweep(workspace, axes=axes, seeds=1)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_sweep(sweep, interrupt=AtTheFirstStep())
    # The newest is damaged: the one before leads to the same.
    states = Checkpoints(sweep.path / "private" / "group0-0", 2)
    newest = sweep.path / "private" / "group0-0" / "0-2" / "manifest.ocdbt"
    assert states.latest() == (0, 2)
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    found = adapters(run_sweep(sweep))
    for name in wanted:
        for tensor in wanted[name]:
            np.testing.assert_array_equal(found[name][tensor], wanted[name][tensor])
    # Finished members are not written again, but those that lack their end get the same one.
    first, second = expand(sweep).values()
    before = (first.path / "metrics.json").stat().st_mtime_ns
    (second.path / "metrics.json").unlink()
    assert all(
        np.array_equal(adapters(run_sweep(sweep))[name][t], wanted[name][t])
        for name in wanted
        for t in wanted[name]
    )
    assert (first.path / "metrics.json").stat().st_mtime_ns == before
    # Without its secret a member would get other noise.
    (second.path / "metrics.json").unlink()
    (second.path / "private" / "secret.json").unlink()
    with pytest.raises(RunError, match="secret.json is missing"):
        run_sweep(sweep)


def test_private_members_are_apart_from_others_and_secure_noise_is_each_its_own(tmp_path):
    members = list(expand(tiny_sweep(tmp_path, seeds=2)).values())
    assert [len(p) for p in programs(members)] == [2, 2]
    assert {m.config.privacy.private for m in programs(members)[0]} == {True}
    secure = [
        dataclasses.replace(
            m,
            config=dataclasses.replace(
                m.config, privacy=dataclasses.replace(m.config.privacy, secure_noise=True)
            ),
        )
        for m in members
    ]
    assert [len(p) for p in programs(secure)] == [1] * 4


@pytest.mark.slow
def test_a_group_killed_at_random_gives_the_same_table(workspace):
    wanted = run_sweep(tiny_sweep(workspace, name="undisturbed"))
    file = write_sweep_file(workspace)
    folder = workspace / "runs" / "sweep"
    rng = np.random.default_rng()

    def saved() -> int:
        return max((p.stat().st_mtime_ns for p in folder.glob("private/group0-*/*")), default=0)

    for _ in range(3):
        before = saved()
        process = start_script("sweep.py", f"--config={file}")
        while process.poll() is None and saved() == before:
            time.sleep(0.02)
        time.sleep(rng.random())
        process.kill()
        process.communicate()
    process = start_script("sweep.py", f"--config={file}")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    table = pyarrow.parquet.read_table(folder / "results.parquet")
    again = results_table(wanted.members)
    for column in table.column_names:
        if column not in ("run.dir", "run.research_seed"):
            assert table[column].equals(again[column]), column
    undisturbed = adapters(wanted)
    found = adapters(plan_sweep(tiny_sweep(workspace)))
    for name in found:
        for tensor in found[name]:
            np.testing.assert_array_equal(found[name][tensor], undisturbed[name][tensor])
