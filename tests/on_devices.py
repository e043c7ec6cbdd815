# SPDX-License-Identifier: Apache-2.0
"""Eight simulated devices give what one gives. Run by test_mesh.py in a process of its own."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import test_members as several
import test_step as one
from flax import nnx
from helpers_training import exported, smoke_config, write_backbone
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from jaxdp import dp
from jaxdp.config import ConfigError, TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor
from jaxdp.models.lora import add_lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor
from jaxdp.run.train import Interrupted, train
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.mesh import DATA, WHOLE, frozen_specs, make_mesh, place
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import Stage
from jaxdp.training.step import TrainState, make_train_step
from jaxdp.training.trainer import StageMember, StageTrainer

jax.config.update("jax_num_cpu_devices", 8)

# Any order of adding up to 12 microbatches, and what Adam or momentum make of it.
ROUNDING = {"float32": 1e-6, "float64": 1e-12}
SILENT = optax.chain(optax.scale(1 / 8), optax.sgd(one.RATE, momentum=0.9))


@functools.cache
def compiled(devices, optimizer, sharded, x64):
    """(step, mesh, specs); devices None is the step without a mesh."""
    mesh = None if devices is None else make_mesh(devices)
    specs = P(DATA) if sharded else WHOLE
    step = make_train_step(
        one.loss_fn, dp.clipped_gradient_sum, optimizer, one.BUCKETS, mesh, specs
    )
    return jax.jit(step, out_shardings=mesh and NamedSharding(mesh, WHOLE)), mesh, specs


def run(devices, batches, optimizer=SILENT, sharded=False):
    """(adapters, diagnostics) after a step for each batch, and what there was to run it with."""
    step, mesh, specs = compiled(devices, optimizer, sharded, jax.config.jax_enable_x64)
    adapters, frozen, data = one.problem()
    lengths = np.asarray(data.reports.lengths)
    frozen = jnp.pad(frozen, ((0, -len(frozen) % 8), (0, 0)))
    state = place(TrainState(adapters, optimizer.init(adapters)), mesh)
    frozen, data = place(frozen, mesh, specs), place(data, mesh)
    plans = [one.BUCKETS.plan(np.asarray(b, int), lengths, one.CAPACITY) for b in batches]
    for plan in plans:
        state, diagnostics = step(state, frozen, data, plan, one.CLIP)
    result = jax.tree.map(np.asarray, (state.adapters, diagnostics))
    return result, lambda: jax.make_jaxpr(step)(state, frozen, data, plans[0], one.CLIP)


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, rounding):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding), left, right
    )


@pytest.mark.parametrize(
    "precision, devices",
    [
        ("float64", 2),
        pytest.param("float64", 4, marks=pytest.mark.slow),
        pytest.param("float64", 8, marks=pytest.mark.slow),
        pytest.param("float32", 8, marks=pytest.mark.slow),
    ],
)
def test_any_number_of_devices_makes_the_same_adapters(precision, devices):
    # Up to two microbatches have only one sum, whatever the order.
    few = [one.BATCHES[0][:4], [20], []]
    with jax.enable_x64(precision == "float64"):
        (alone, alone_diagnostics), _ = run(None, one.BATCHES)
        (shared, diagnostics), _ = run(devices, one.BATCHES)
        assert_equal(run(devices, few)[0], run(None, few)[0])
    assert_close(shared, alone, ROUNDING[precision])
    # Every microbatch is summed as on one device, so what is known of a report has the same bits.
    assert_equal(diagnostics, alone_diagnostics)


def test_one_device_on_a_mesh_is_one_device():
    """The sums have one order. But the two programs may fuse the update otherwise, which rounds its
    last bit otherwise: an entry in 15 does with AVX-512 on AMD."""
    rounding = len(one.BATCHES) * np.finfo(np.float32).eps
    assert_close(run(1, one.BATCHES)[0], run(None, one.BATCHES)[0], rounding)
    # What a step computes of each report, before any update, has the same bits.
    first = one.BATCHES[:1]
    assert_equal(run(1, first)[0][1], run(None, first)[0][1])


def test_noise_is_drawn_once_whatever_the_devices():
    """Without reports a step is its noise: the same bits, hence neither scaled nor repeated."""

    def loss(adapters, frozen, tokens, length, labels):
        return jnp.sum(adapters) * length

    # The fewest leaves: what takes long is compiling noise.
    start, buckets = jnp.zeros((7, 3)), Buckets((16,), (2,))
    _, frozen, data = one.problem()
    plan = buckets.plan(np.zeros(0, int), np.asarray(data.reports.lengths), 8)
    ends = []
    for mesh in (None, make_mesh(8)):
        step = jax.jit(
            make_train_step(loss, dp.clipped_gradient_sum, one.optimizer(), buckets, mesh)
        )
        state = place(TrainState(start, one.optimizer().init(start)), mesh)
        for _ in range(2):
            state, _ = step(state, place(frozen, mesh), place(data, mesh), plan, one.CLIP)
        ends.append(np.asarray(state.adapters))
    assert_equal(*ends)
    # Two draws with momentum: 1.9 z1 + z2, times rate and stddev over the expected batch.
    scale = (
        one.RATE * one.MECHANISM.stddev / one.MECHANISM.expected_batch_size * (1.9**2 + 1) ** 0.5
    )
    assert 0.5 * scale < ends[0].std() < 2 * scale


@pytest.mark.slow
def test_frozen_weights_may_be_shared_out():
    with jax.enable_x64(True):
        (whole, diagnostics), _ = run(None, one.BATCHES)
        (sharded, sharded_diagnostics), trace = run(4, one.BATCHES, sharded=True)
        assert "all_gather" in str(trace())
    assert_close(sharded, whole, 1e-12)
    assert_close(sharded_diagnostics, diagnostics, 1e-12)


def collectives(jaxpr, in_loop=False):
    """(name, whether in a loop, numbers) of everything that devices do together."""
    for equation in jaxpr.eqns:
        if equation.primitive.name.startswith(("psum", "all_", "ppermute", "pmax", "reduce_sc")):
            yield equation.primitive.name, in_loop, sum(v.aval.size for v in equation.invars)
        loop = in_loop or equation.primitive.name in ("while", "scan")
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                yield from collectives(inner, loop)


def test_a_step_has_one_collective_of_the_adapters_size_outside_of_its_loops():
    _, trace = run(8, [[]])
    adapters = sum(leaf.size for leaf in jax.tree.leaves(one.problem()[0]))
    assert list(collectives(trace().jaxpr)) == [("psum", False, adapters + 2 * one.CAPACITY)]


def test_more_devices_than_there_are_is_an_error():
    assert make_mesh().shape == {"member": 1, "data": 8}
    assert make_mesh(members=9).shape == {"member": 1, "data": 8}
    assert make_mesh(4, members=6).shape == {"member": 2, "data": 2}
    with pytest.raises(ConfigError, match="config.run.devices must be at most 8"):
        make_mesh(9)


# A tiny BERT.

N = 40


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("model") / "backbone")


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, N)
    return Packed.from_lengths(rng.integers(5, 19, lengths.sum()).astype(np.int32), lengths)


BUCKETS = Buckets((16, 8), (2, 4))


@pytest.fixture
def tiny_too(monkeypatch):
    """Frozen weights of any size are shared out."""
    monkeypatch.setattr("jaxdp.training.mesh._SMALL", 0)


def with_adapters(backbone):
    model = load_classifier(backbone, 3, "cls", rngs=nnx.Rngs(0))[0]
    add_lora(model, rank=2, alpha=4, targets=["query", "value"], rngs=nnx.Rngs(1))
    return model


@pytest.mark.slow
def test_prediction_and_frozen_levels_have_the_bits_of_one_device(backbone, tokens, tiny_too):
    model = load_classifier(backbone, 3, "cls", rngs=nnx.Rngs(0))[0]
    levels = [
        FrozenLayers(model, {"train": tokens}, BUCKETS, mesh=mesh).at(1)["train"]
        for mesh in (None, make_mesh(8))
    ]
    np.testing.assert_array_equal(levels[0].values, levels[1].values)
    graphdef, adapters, frozen = nnx.split(model, nnx.PathContains("classifier"), nnx.Param)
    alone = Predictor(graphdef, 1, BUCKETS)(adapters, frozen, levels[0])
    mesh = make_mesh(8)
    specs = frozen_specs(frozen, mesh)
    assert any(DATA in spec for spec in jax.tree.leaves(specs))
    for weights in (frozen, place(frozen, mesh, specs)):
        shared = Predictor(graphdef, 1, BUCKETS, mesh)(adapters, weights, levels[0])
        np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize(
    "devices, shard",
    [*(pytest.param(n, False, marks=pytest.mark.slow) for n in (1, 8)), (8, True)],
)
def test_the_train_step_lowers_ahead_of_time(backbone, tokens, tiny_too, devices, shard):
    """The real step: BERT, LoRA, clip, noise, Adam. Lowering only: nothing is compiled or run."""
    mechanism = dp.SubsampledGaussian(N, 10, 3, 0.1, 1.0)
    settings = TrainConfig(steps=3, expected_batch_size=10.0)
    stage = Stage("main stage", "lora", settings, mechanism)
    trainer = StageTrainer(
        [StageMember(stage, with_adapters(backbone), RunSecret.create(0))],
        frozen_layers=FrozenLayers(None, {"train": tokens, "validation": tokens}, BUCKETS),
        labels={"train": np.ones((N, 3), np.int8)},
        units=PrivacyUnits("report", np.arange(N), np.arange(N + 1)),
        token_buckets=BUCKETS,
        mesh=make_mesh(devices),
        shard_frozen=shard,
    )
    for platform in ("cuda", "tpu"):
        step = exported(trainer, [platform])
        assert step.nr_devices == devices and step.platforms == (platform,)
        text = step.mlir_module()
        assert text.count("stablehlo.all_reduce") == 1
        assert ("stablehlo.all_gather" in text) == shard


# Members of a sweep.


@pytest.mark.parametrize(
    "mode, members, shape",
    [
        ("head", 2, (2, 4)),
        pytest.param("head", 8, (8, 1), marks=pytest.mark.slow),
        pytest.param("lora-ffa", 2, (2, 4), marks=pytest.mark.slow),
    ],
)
def test_members_share_a_mesh(backbone, mode, members, shape):
    """Members along one axis, microbatches along the other, and noise once for each member."""
    names, buckets = tuple(range(members)), Buckets((16,), (2,))
    mesh = make_mesh(8, members)
    assert tuple(mesh.shape.values()) == shape
    shared, models = several.stage_trainer(backbone, names, mode, mesh, buckets=buckets)
    alone, others = several.stage_trainer(backbone, names, mode, buckets=buckets)
    assert shared.initial_state.optimizer[0].key.sharding.spec[0] == "member"
    found, wanted = several.trained(shared, models), several.trained(alone, others)
    assert_close(found, wanted, 1e-5)


# Whole runs.


def whole(workspace, resume=False, interrupt=None, monitor=Monitor, **changes):
    changes = dict(privacy__noise_multiplier=20.0, privacy__unit="patient") | changes
    config = smoke_config(workspace, head_stage__steps=0, centering__l2_clip_norm=None, **changes)
    train(
        config,
        resume=resume,
        interrupt=interrupt or Interrupt(),
        monitor=monitor(Console(file=io.StringIO())),
    )
    folder = workspace / "runs" / config.run.name / "release" / "adapter"
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_run_on_eight_devices_releases_the_adapter_of_one(workspace):
    # A head alone compiles fastest.
    alone = whole(workspace, run__name="one", run__devices=1, train__mode="head")
    shared = whole(workspace, run__name="eight", run__devices=None, train__mode="head")
    assert_close(shared, alone, 1e-6)


@pytest.mark.slow
def test_a_run_with_lora_on_eight_devices_too_and_it_resumes_to_the_last_bit(workspace):
    alone = whole(workspace, run__name="one", run__devices=1)
    shared = whole(workspace, run__name="eight", run__devices=None)
    assert_close(shared, alone, 1e-6)
    interrupt = Interrupt()

    class StopAfterThree(Monitor):
        def stepped(self, done, *rest):
            super().stepped(done, *rest)
            if done.step == 3:
                interrupt.received = 15

    changes = dict(run__name="stopped", run__devices=None)
    with pytest.raises(Interrupted):
        whole(workspace, interrupt=interrupt, monitor=StopAfterThree, **changes)
    assert_equal(whole(workspace, resume=True, **changes), shared)


def test_what_is_only_read_is_in_memory_once():
    mesh, array = make_mesh(), np.arange(4099, dtype=np.float32)[1:]

    def memory(placed):
        np.testing.assert_array_equal(placed, array)
        assert len(placed.addressable_shards) == 8
        return {shard.data.unsafe_buffer_pointer() for shard in placed.addressable_shards}

    assert len(memory(place(array, mesh, read_only=True))) == 1
    assert len(memory(place(jnp.array(array), mesh, read_only=True))) == 1
    assert len(memory(place(array, mesh))) > 1


def test_only_large_arrays_that_divide_are_shared_out():
    mesh = make_mesh(8)
    shapes = {"large": (64, 512), "odd": (255, 257), "small": (64, 8), "first": (512, 63)}
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = frozen_specs(arrays, mesh)
    assert specs == {"large": P(None, DATA), "odd": P(), "small": P(), "first": P(DATA, None)}
    assert set(frozen_specs(arrays, make_mesh(1)).values()) == {P()}
