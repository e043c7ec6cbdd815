# SPDX-License-Identifier: Apache-2.0
"""LoRA surgery: which layers, which parameters, and exactly what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers_models import load, our_logits, randomise, reports, save_torch_model

from jaxdp.models import lora

NAMES = ("query", "key", "value")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    save_torch_model(path, "bert")
    return path


def adapted(directory, targets=("query", "value"), seed=0, **kwargs):
    model = load(directory)
    paths = lora.add_lora(
        model, **{"rank": 3, "alpha": 6.0} | kwargs, targets=targets, rngs=nnx.Rngs(seed)
    )
    return model, [".".join(map(str, path)) for path in paths]


def names(state):
    return {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


def test_fresh_adapters_change_no_bit(directory, tmp_path):
    ids, lengths = reports()
    model, paths = adapted(directory, ["all-linear"])
    assert len(paths) == 18
    found, expected = (our_logits(m, ids, lengths) for m in (model, load(directory)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
    # Operation by operation, as a layer is defined: XLA may fuse and so round the two apart.
    save_torch_model(tmp_path, "bert", num_hidden_layers=1)
    (model, _), plain = adapted(tmp_path, ["all-linear"]), load(tmp_path)
    with jax.disable_jit():
        np.testing.assert_array_equal(model(ids[0], lengths[0]), plain(ids[0], lengths[0]))


def test_fresh_factors_are_those_of_peft():
    layer = nnx.Linear(50, 30, rngs=nnx.Rngs(0))
    model = type("One", (nnx.Module,), {"level_of": lambda self, path: 0, "depth": 1})()
    model.only = layer
    lora.add_lora(model, rank=40, alpha=1.0, targets=["only"], rngs=nnx.Rngs(1))
    a = np.asarray(model.only.lora_a[...])
    # kaiming_uniform(a=sqrt(5)) of PEFT is uniform in +-1/sqrt(fan_in).
    bound = 50**-0.5
    assert 0.98 * bound < np.abs(a).max() <= bound
    assert abs(a.std() / (bound / 3**0.5) - 1) < 0.05
    assert not np.any(model.only.lora_b[...])


def test_the_update_is_alpha_over_rank_and_merges():
    rng = np.random.default_rng(0)
    base = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    a, b = rng.normal(size=(5, 2)), rng.normal(size=(2, 4))
    layer = lora.LoRALinear(base, jnp.asarray(a), jnp.asarray(b), alpha=6.0)
    x = rng.normal(size=(3, 5))
    expected = x @ np.asarray(base.kernel[...]) + 3.0 * x @ a @ b
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    merged = nnx.Linear(5, 4, rngs=nnx.Rngs(0))
    merged.kernel[...] = layer.merged_kernel()
    np.testing.assert_allclose(merged(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "first_layer", "expected"),
    [
        (["query"], 0, {f"bert.encoder.layer.{i}.attention.self.query" for i in range(3)}),
        (
            ["value", "key"],
            2,
            {f"bert.encoder.layer.2.attention.self.{n}" for n in ("key", "value")},
        ),
        (["intermediate.dense"], 2, {"bert.encoder.layer.2.intermediate.dense"}),
        (
            ["output.dense"],
            2,
            {f"bert.encoder.layer.2.{n}output.dense" for n in ("", "attention.")},
        ),
    ],
)
def test_targets_name_exactly_these_layers(directory, targets, first_layer, expected):
    model, paths = adapted(directory, targets, first_layer=first_layer)
    assert set(paths) == expected
    found = {
        ".".join(map(str, p)) for p, m in nnx.iter_modules(model) if type(m) is lora.LoRALinear
    }
    assert found == expected


def test_all_linear_leaves_out_pooler_and_head(directory):
    _, paths = adapted(directory, ["all-linear"])
    assert not [path for path in paths if "pooler" in path or "classifier" in path]


@pytest.mark.parametrize("target", ["querry", "pooler.dense", "classifier", "layer", "ry"])
def test_an_unknown_target_lists_the_names(directory, target):
    with pytest.raises(
        ValueError,
        match=f"'{target}' names no linear layer; valid names are .*all-linear.* query.* value",
    ):
        adapted(directory, [target])


def test_rank_must_be_positive(directory):
    with pytest.raises(ValueError, match="lora.rank must be at least 1, not 0"):
        adapted(directory, rank=0)


LORA_A = {
    f"bert.encoder.layer.{i}.attention.self.{n}.lora_a"
    for i in range(3)
    for n in ("query", "value")
}
LORA_B = {name.replace("lora_a", "lora_b") for name in LORA_A}
HEAD = {"classifier.kernel", "classifier.bias"}


@pytest.mark.parametrize("mode", lora.MODES)
def test_each_mode_trains_exactly_its_parameters(directory, mode):
    model = adapted(directory)[0] if mode.startswith("lora") else load(directory)
    everything = names(nnx.state(model))
    trained = {
        "lora": LORA_A | LORA_B | HEAD,
        "lora-ffa": LORA_B | HEAD,
        "head": HEAD,
        "bitfit": HEAD | {name for name in everything if name.endswith(".bias")},
        "full": everything,
    }[mode]
    _, adapters, frozen = lora.split(model, mode)
    assert names(adapters) == trained
    assert names(frozen) == everything - trained


def test_an_unknown_mode_lists_the_modes(directory):
    with pytest.raises(ValueError, match="train.mode must be one of lora, .*full, not 'qlora'"):
        lora.split(load(directory), "qlora")


@pytest.mark.parametrize("mode", lora.MODES)
def test_every_mode_has_a_gradient_for_all_it_trains(directory, mode):
    model = adapted(directory)[0] if mode.startswith("lora") else load(directory)
    randomise(model, mode)
    graphdef, adapters, frozen = lora.split(model, mode)
    ids, lengths = reports(lengths=(9,))

    @jax.jit
    @jax.grad
    def gradient(adapters):
        return (nnx.merge(graphdef, adapters, frozen)(ids[0], lengths[0]) ** 2).sum()

    still = {
        ".".join(map(str, path))
        for path, value in nnx.to_flat_state(gradient(adapters))
        if not jnp.abs(value[...]).max() > 1e-7
    }
    # Softmax does not see a shift of all keys; the key bias's gradient is rounding noise.
    assert not {name for name in still if not name.endswith("key.bias")}
