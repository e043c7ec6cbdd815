# SPDX-License-Identifier: Apache-2.0
"""Attention against a loop over heads and queries; and that the fused one is what a GPU gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import BertConfig

from jaxdp.dp import clipped_gradient_sum
from jaxdp.models import layers, lora
from jaxdp.models.bert import BertClassifier
from jaxdp.models.layers import attend

LENGTH, HEADS, WIDTH = 12, 3, 5


def by_loops(q, k, v, length, window=None, bias=None):
    out = np.zeros_like(q)
    for head in range(q.shape[1]):
        for i, query in enumerate(q[:, head]):
            near = [j for j in range(length) if window is None or abs(i - j) <= window]
            scores = k[near, head] @ query / np.sqrt(q.shape[-1])
            scores += 0 if bias is None else bias[head, i, near]
            weights = np.exp(scores - scores.max(initial=0))
            out[i, head] = weights / weights.sum() @ v[near, head] if near else 0
    return out


@pytest.mark.parametrize("queries", [LENGTH, 1])
@pytest.mark.parametrize("length", [1, 7, LENGTH])
def test_attention_is_what_its_definition_says(queries, length):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(LENGTH, HEADS, WIDTH)) for _ in range(3))
    with jax.enable_x64(True):
        found = attend(*map(jnp.asarray, (q[:queries], k, v)), jnp.int32(length))
        np.testing.assert_allclose(found, by_loops(q[:queries], k, v, length), atol=1e-12)


@pytest.mark.parametrize("window", [None, 2, 5, 9, 30])
def test_long_and_local_attention_are_what_their_definition_says(monkeypatch, window):
    """By blocks (37 tokens are more than two blocks of 8, and than four windows of 2, 5 or 9) or at
    once; with a gradient, which blocks compute anew. Lengths share a program."""
    monkeypatch.setattr(layers, "_BLOCK", 8)
    rng = np.random.default_rng(0)
    q, k, v, every = (rng.normal(size=(37, HEADS, WIDTH)) for _ in range(4))

    def blocks(q, k, v, length):
        return attend(q, k, v, length, window=window)

    def plain(q, k, v, length):
        scores = jnp.einsum("qnd,knd->nqk", q, k) / np.sqrt(WIDTH)
        near = np.abs(np.subtract.outer(np.arange(37), np.arange(37))) <= (window or 99)
        scores = jnp.where((jnp.arange(37) < length) & near, scores, -1e9)
        return jnp.einsum("nqk,knd->qnd", jax.nn.softmax(scores), v)

    def total(q, k, v, length, weights, attention):
        return (weights * attention(q, k, v, length)).sum()

    with jax.enable_x64(True):
        attention = jax.jit(blocks)
        gradient = jax.jit(jax.grad(total, (0, 1, 2)), static_argnames="attention")
        for length in (1, 23, 37):
            # What stands beyond the end is never read.
            weights = every * (np.arange(37) < length)[:, None, None]
            found = attention(q, k, v, np.int32(length))
            assert np.isfinite(found).all()
            expected = by_loops(q, k, v, length, window)
            np.testing.assert_allclose(found[:length], expected[:length], atol=1e-12)
            gradients, wanted = (
                gradient(q, k, v, np.int32(length), weights, attention=f) for f in (blocks, plain)
            )
            for one, other in zip(gradients, wanted, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_bias_is_added_to_the_scores():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(LENGTH, HEADS, WIDTH)) for _ in range(3))
    bias = rng.normal(size=(HEADS, LENGTH, LENGTH))
    with jax.enable_x64(True):
        found = attend(*map(jnp.asarray, (q, k, v)), jnp.int32(7), bias_NxQxL=jnp.asarray(bias))
        np.testing.assert_allclose(found, by_loops(q, k, v, 7, bias=bias), atol=1e-12)


def test_a_gpu_gets_fused_attention_in_half_precision_alone(monkeypatch):
    """Lowered, not run: no GPU is needed. What cuDNN computes there is for a machine with one."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_000)
    config = BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    for dtype, calls in ((jnp.bfloat16, 1), (None, 0)):
        model = BertClassifier(config, 3, "cls", dtype, rngs=nnx.Rngs(0))
        lora.add_lora(model, rank=2, alpha=2.0, targets=("query",), rngs=nnx.Rngs(1))
        graphdef, adapters, frozen = lora.split(model, "lora")

        def loss(adapters, ids, length, graphdef=graphdef, frozen=frozen):
            return nnx.merge(graphdef, adapters, frozen)(ids, length).sum()

        step = jax.jit(clipped_gradient_sum(loss, 1.0))
        batch = jnp.ones((4, 64), jnp.int32), jnp.array([64, 9, 1, 0], jnp.int32)
        traced = step.trace(adapters, *batch, is_padding=batch[1] == 0)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        # The last layer asks for one token, which cuDNN has no use for.
        assert text.count("@__cudnn$fmhaSoftmax(") == calls
        assert text.count("@__cudnn$fmhaSoftmaxBackward(") == calls
