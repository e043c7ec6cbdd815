# SPDX-License-Identifier: Apache-2.0
"""model.dtype says what products are made in, on every platform: lowered, no accelerator needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers_models import load, our_logits, reports, save_torch_model
from helpers_training import exported, smoke_config, write_backbone

from jaxdp import dp
from jaxdp.backbone import resolve_backbone
from jaxdp.config import TrainConfig
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.models import layers, lora
from jaxdp.training import setup, warm_start
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.randomness import RunSecret
from jaxdp.training.stages import Stage
from jaxdp.training.trainer import StageMember, StageTrainer

N, BUCKETS = 6, Buckets((8,), (2,))
PRECISION = r"(?:precision = \[(\w+), (\w+)\])?"
TYPE = r"tensor<(?:\d+x)*(\w+)>"
PRODUCT = re.compile(rf"stablehlo\.dot_general .*?{PRECISION} : \({TYPE}, {TYPE}\)")


def products(text):
    """(type of an operand, precision) of every product in a lowered program."""
    found = PRODUCT.findall(text)
    assert len(found) == len(re.findall(r"stablehlo\.(dot|convolution)", text)) > 0
    assert all(left == right for left, right, *_ in found)
    return {(of, precision or "DEFAULT") for precision, _, *types in found for of in types}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return write_backbone(tmp_path_factory.mktemp("model") / "backbone")


def model_of(backbone, dtype, pooling, mode):
    settings = {"model__dtype": dtype, "model__pooling": pooling, "train__mode": mode}
    config = smoke_config(backbone.parent, **settings, model__backbone=str(backbone))
    resolved = resolve_backbone(str(backbone), pooling)
    return warm_start.build_model(config, resolved, "abc", RunSecret.create(0))[0]


def step_of(model, mode):
    """The real step, from token ids or, of a head, from features."""
    tokens = Packed.from_lengths(np.ones(8 * N, np.int32), np.full(N, 8))
    mechanism = dp.SubsampledGaussian(N, 3, 3, 0.1, 1.0)
    settings = TrainConfig(steps=3, expected_batch_size=3.0)
    stage = Stage("main stage", mode, settings, mechanism)
    return StageTrainer(
        [StageMember(stage, model, RunSecret.create(0))],
        frozen_layers=FrozenLayers(model, {"train": tokens}, BUCKETS),
        labels={"train": np.ones((N, 3), np.int8)},
        units=PrivacyUnits("report", np.arange(N), np.arange(N + 1)),
        token_buckets=BUCKETS,
    )


WANTED = {
    "float32": {("f32", "HIGHEST")},
    "tensorfloat32": {("f32", "HIGH")},
    # What is float32 here, as in the head, may be rounded to it.
    "bfloat16": {("f32", "DEFAULT"), ("bf16", "DEFAULT")},
}


@pytest.mark.parametrize("dtype", WANTED)
@pytest.mark.parametrize("pooling, mode", [("cls", "lora"), ("label-attention", "lora-ffa")])
def test_every_product_of_a_step_is_in_what_was_asked_for(backbone, dtype, pooling, mode):
    trainer = step_of(model_of(backbone, dtype, pooling, mode), mode)
    assert products(exported(trainer, ["cuda", "tpu"]).mlir_module()) == WANTED[dtype]


def test_frozen_weights_are_rounded_once_and_not_in_every_step(backbone):
    model = model_of(backbone, "bfloat16", "cls", "lora")
    text = exported(step_of(model, "lora"), ["tpu"]).mlir_module()
    # What is rounded in it: adapters, and what a layer reads; no kernel.
    rounded = re.findall(r"stablehlo\.convert .*\(tensor<(\w+)xf32>\) -> tensor<\w+xbf16>", text)
    assert rounded and not {"16x16", "16x32", "32x16"} & set(rounded)
    graphdef, adapters, frozen = lora.split(model, "lora")
    held = lora.rounded_once(model, frozen)
    ids = jnp.arange(8) % 5 + 5
    logits = [jax.jit(nnx.merge(graphdef, adapters, part))(ids, 7) for part in (frozen, held)]
    np.testing.assert_array_equal(*logits)


ROUNDING = 2.0**-8  # the largest of bfloat16, relative


def test_a_layer_norm_in_bfloat16_rounds_its_result_alone():
    norm = layers.layer_norm(512, 1e-12, jnp.bfloat16, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(30.0, 1.0, (50, 512))  # a mean that would be cut to 30
    x = jnp.asarray(x, jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True))
    found = norm(x)
    assert found.dtype == jnp.bfloat16
    # Beside it float32's own rounding, of means of 30.
    error = np.abs(np.asarray(found, np.float64) - exact)
    assert (error <= ROUNDING * np.abs(exact) + 30 * 2.0**-22).all()
    assert error.max() > ROUNDING / 2


@pytest.mark.parametrize("kind", ["bert", "albert", "mpnet", "modernbert"])
def test_bfloat16_states_are_as_far_from_float32_as_their_roundings_add_up_to(tmp_path, kind):
    save_torch_model(tmp_path, kind)
    exact, rounded = (load(tmp_path, pooling="mean", dtype=d) for d in (None, "bfloat16"))
    rounded.classifier = exact.classifier
    ids, lengths = reports()
    seen = np.arange(ids.shape[1]) < lengths[:, None]
    level = exact.depth

    def states(model):
        found = jax.jit(jax.vmap(lambda x, n: model.advance(x, n, 0, level)))(ids, lengths)
        assert found.dtype == np.float32
        return found[seen]

    x = states(exact)
    layer = rounded.apply_layer(0, x.astype(jnp.bfloat16), len(x), False)
    assert layer.dtype == jnp.bfloat16  # what stands between layers
    # These models add little to the residual, so what counts is its own rounding: of what enters,
    # and after each sum and norm; ModernBERT norms copies. Independent, each of 0.42 of the
    # largest on average (root mean square, over mantissas that are uniform in the logarithm).
    roundings = 1 + level * (2 if kind == "modernbert" else 4)
    expected = 0.42 * ROUNDING * roundings**0.5
    error = jnp.sqrt(jnp.mean((states(rounded) - x) ** 2) / jnp.mean(x**2))
    assert expected / 2 < error < 2 * expected
    # Of a logit: what the head, a sum of independent terms, makes of that.
    kernel = np.asarray(exact.classifier.kernel[...])
    scale = 2 * expected * np.sqrt((x**2).mean()) * np.linalg.norm(kernel, axis=0)
    found, wanted = (our_logits(model, ids, lengths) for model in (rounded, exact))
    assert found.dtype == np.float32
    assert (np.abs(found - wanted) < 3 * scale).all()


def test_a_model_that_leaves_it_open_is_seen(backbone):
    model = model_of(backbone, "float32", "cls", "lora")
    model.precision = None
    text = exported(step_of(model, "lora"), ["tpu"]).mlir_module()
    assert products(text) == {("f32", "DEFAULT")}


def test_a_heads_sum_of_clipped_gradients_is_float32_whatever_the_model(backbone):
    trainer = step_of(model_of(backbone, "tensorfloat32", "mean", "head"), "head")
    found = products(exported(trainer, ["cuda"]).mlir_module())
    assert found == {("f32", "HIGH"), ("f32", "HIGHEST")}


@pytest.mark.parametrize("pooling", ["cls", "mean", "label-attention"])
def test_prediction_and_what_is_written_of_a_model_are_exact(backbone, pooling):
    """A model as it is loaded, not told anything: exports to StableHLO are made of such ones."""
    model = model_of(backbone, None, pooling, "lora")
    if pooling == "label-attention":
        model.set_basis(jnp.zeros((3, 16)), jnp.zeros((3, 16, 4)))

    def lowered(fn, *arguments):
        traced = jax.jit(fn).trace(*arguments)
        return products(traced.lower(lowering_platforms=("tpu",)).as_text())

    ids = jnp.ones(8, jnp.int32)
    graphdef, state = nnx.split(model)
    assert lowered(lambda s: nnx.merge(graphdef, s)(ids, 8), state) == WANTED["float32"]
    _, layer = next(x for x in nnx.iter_modules(model) if isinstance(x[1], lora.LoRALinear))
    assert lowered(layer.merged_kernel) == WANTED["float32"]
    if pooling == "label-attention":

        def folded(state):
            model = nnx.merge(graphdef, state)
            model.fold_basis()
            return model.classifier.kernel[...]

        assert lowered(folded, state) == WANTED["float32"]


@pytest.mark.parametrize(
    "backend, said", [("cpu", "float32"), ("gpu", "tensorfloat32"), ("tpu", "bfloat16_3x")]
)
def test_a_run_says_what_it_computes_in(workspace, monkeypatch, backend, said):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = smoke_config(workspace, model__dtype="tensorfloat32")
    assert setup.arithmetic(config) == said
    for dtype in ("float32", "bfloat16"):
        assert setup.arithmetic(smoke_config(workspace, model__dtype=dtype)) == dtype
    chosen = setup.arithmetic(smoke_config(workspace))
    assert chosen == ("float32" if backend == "cpu" else "bfloat16")
