# SPDX-License-Identifier: Apache-2.0
"""BERT against transformers: logits and every gradient that training uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from helpers_models import (
    IGNORE_PEFT,
    SIZES,
    STUDY,
    check_random_parity,
    load,
    our_logits,
    reports,
    save_torch_model,
)

from jaxdp.models import lora
from jaxdp.models.classifier import POOLINGS
from jaxdp.models.pretrained import as_config

pytestmark = IGNORE_PEFT
SMALLER = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    save_torch_model(path, "bert")
    return path


def test_logits_and_gradients_match_transformers(tmp_path):
    # Bounds: float32 noise at this size is a few 1e-7; a wrong eps or GELU shows at 1e-4.
    check_random_parity(tmp_path, "bert", SMALLER, logits_atol=2e-6, gradient_rtol=2e-5)


@pytest.mark.parametrize(
    "pooling",
    [
        *(
            pytest.param(pooling, marks=[] if pooling == "mean-last2" else pytest.mark.slow)
            for pooling in POOLINGS
            if pooling != "label-attention"  # whose twin in PyTorch test_peft.py tries
        )
    ],
)
def test_float64_agrees_to_1e_10(tmp_path, pooling):
    with jax.enable_x64(True):
        check_random_parity(
            tmp_path,
            "bert",
            SMALLER,
            pooling=pooling,
            dtype=torch.float64,
            logits_atol=1e-10,
            gradient_rtol=1e-10,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-small", "bert-medium"])
def test_study_sizes_match_transformers(tmp_path, name):
    check_random_parity(
        tmp_path,
        *STUDY[name],
        lengths=(128, 57, 1),
        width=128,
        noise=0.02,
        logits_atol=1e-4,
        gradient_rtol=1e-3,
    )


def test_advancing_in_pieces_is_advancing_at_once(saved):
    model = load(saved)
    (ids, *_), (length, *_) = reports()
    whole = model.advance(ids, length, 0, model.feature_level)
    for cut in range(model.feature_level + 1):
        state = model.advance(ids, length, 0, cut)
        rest = model.advance(state, length, cut, model.feature_level)
        if cut == model.depth:  # all of the last layer, whose other outputs are else not computed
            np.testing.assert_allclose(rest, whole, atol=1e-6)
        else:
            np.testing.assert_array_equal(rest, whole)
    with pytest.raises(ValueError, match="levels"):
        model.advance(ids, length, 2, 1)


def test_the_last_two_layers_are_averaged_from_below_both(saved):
    model, plain = (load(saved, pooling=p) for p in ("mean-last2", "mean"))
    (ids, *_), (length, *_) = reports()
    whole = model.advance(ids, length, 0, model.feature_level)
    last, before = (plain.advance(ids, length, 0, model.depth - k) for k in (0, 1))
    for states, level in ((before, model.depth - 1), (ids, 0)):
        np.testing.assert_array_equal(
            model.advance(states, length, level, model.feature_level), whole
        )
    mean = (last[:length] + before[:length]).mean(axis=0) / 2
    np.testing.assert_allclose(whole, mean, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=f"starts at level {model.depth - 1}"):
        model.advance(last, length, model.depth, model.feature_level)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_has_no_influence(saved, pooling):
    model = load(saved, pooling=pooling)
    ids, lengths = reports()
    other = np.where(ids == 0, 42, ids)
    assert (other != ids).any()
    np.testing.assert_array_equal(
        our_logits(model, other, lengths), our_logits(model, ids, lengths)
    )


def test_more_tokens_than_positions_is_an_error(saved):
    with pytest.raises(ValueError, match="41 tokens, but this backbone has 40 positions"):
        load(saved)(jnp.ones(41, int), 41)


def test_bfloat16_products_keep_float32_sums(saved):
    ids, lengths = reports()
    models = [load(saved, dtype=dtype) for dtype in (None, "bfloat16")]
    exact, rounded = (our_logits(m, ids, lengths) for m in models)
    assert rounded.dtype == np.float32
    # 8 bits of mantissa through 3 layers: different, and not by much.
    assert 1e-5 < np.abs(rounded - exact).max() < 0.05
    assert models[1].advance(ids[0], lengths[0], 0, 2).dtype == np.float32

    with jax.disable_jit():  # or layers would be functions that are called
        operations = jax.make_jaxpr(models[1])(ids[0], lengths[0]).jaxpr.eqns
    products = [e for e in operations if e.primitive.name == "dot_general"]
    wide = [e for e in products if e.invars[0].aval.dtype == np.float32]
    assert len(products) > 20 and len(wide) <= 1  # the head alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "'hidden_size': .* expected int, got NoneType"),
        ({"hidden_size": "32"}, "'hidden_size': .* expected int, got str"),
        ({"hidden_size": 30}, "multiple of num_attention_heads"),
        ({"num_attention_heads": 0}, "multiple of num_attention_heads"),
        ({"hidden_act": "silu"}, "hidden_act must be one of gelu, "),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type must be absolute"),
        ({"is_decoder": True}, "is_decoder must be False, not True"),
    ],
)
def test_config_fields_that_cannot_be_used_are_named(change, message):
    with pytest.raises(ValueError, match=message) as info:
        as_config({"model_type": "bert"} | SIZES["bert"] | change)
    assert "\n" not in str(info.value)


def test_start_level_follows_what_is_trained(saved):

    def level(mode, **adapters):
        model = load(saved)
        if adapters:
            lora.add_lora(model, rank=2, alpha=2.0, rngs=nnx.Rngs(0), **adapters)
        return model.start_level(lora.split(model, mode)[1])

    assert level("head") == 4
    assert level("bitfit") == level("full") == 0
    assert level("lora", targets=["query"], first_layer=1) == 1
    assert level("lora", targets=["query"], first_layer=2) == 2
    pooler = nnx.state(load(saved), nnx.PathContains("pooler"))
    assert load(saved).start_level(pooler) == 3  # the last states, from which it pools


def test_what_start_level_calls_frozen_has_no_gradient(saved):
    # The states below the start level are cached: no adapter may change them.
    model = load(saved)
    lora.add_lora(model, rank=2, alpha=2.0, targets=["all-linear"], first_layer=1, rngs=nnx.Rngs(0))
    graphdef, adapters, frozen = lora.split(model, "lora")
    (ids, *_), (length, *_) = reports()

    def moves(level):
        def total(adapters):
            return nnx.merge(graphdef, adapters, frozen).advance(ids, length, 0, level).sum()

        gradient = jax.jit(jax.grad(total))(adapters)
        return any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))

    start = model.start_level(adapters)
    assert not moves(start) and moves(start + 1)
