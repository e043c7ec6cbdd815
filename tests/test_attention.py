# SPDX-License-Identifier: Apache-2.0
"""Attention against a loop over heads and queries; and that the fused one is what a GPU gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import BertConfig

from jaxdp.dp import clipped_gradient_sum
from jaxdp.models import lora
from jaxdp.models.bert import BertClassifier
from jaxdp.models.layers import attend

LENGTH, HEADS, WIDTH = 12, 3, 5


def by_loops(q, k, v, length):
    out = np.zeros_like(q)
    for head in range(q.shape[1]):
        for i, query in enumerate(q[:, head]):
            scores = k[:length, head] @ query / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[i, head] = weights / weights.sum() @ v[:length, head]
    return out


@pytest.mark.parametrize("queries", [LENGTH, 1])
@pytest.mark.parametrize("length", [1, 7, LENGTH])
def test_attention_is_what_its_definition_says(queries, length):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(LENGTH, HEADS, WIDTH)) for _ in range(3))
    with jax.enable_x64(True):
        found = attend(*map(jnp.asarray, (q[:queries], k, v)), jnp.int32(length))
        np.testing.assert_allclose(found, by_loops(q[:queries], k, v, length), atol=1e-12)


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
