# SPDX-License-Identifier: Apache-2.0
"""The layers that BERT-family encoders share.

Every module here works on ONE report, [L, H]; batches are made with `jax.vmap`. A model built from
them cannot mix two reports, which is what per-report clipping relies on.

`dtype` is the type matrix products run in (None: that of their operands). Layer norms, residuals,
softmax and logits stay in the parameters' own type, float32 or wider.
"""

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
"""`hidden_act` of a config.json -> function, as transformers defines them."""


def layer_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over [..., width], with the two-pass variance that the reference uses."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


def dense(in_features: int, out_features: int, dtype, *, rngs: nnx.Rngs) -> nnx.Linear:
    """x @ kernel + bias with kernel [in, out]; the product runs in `dtype`."""
    return nnx.Linear(in_features, out_features, dtype=dtype, rngs=rngs)


class SelfAttention(nnx.Module):
    """Multi-head self-attention over one report: [L, H] and key bias [L] -> [L, H].

    Covers the query, key and value projections and the softmax; the output projection and the
    residual belong to the encoder layer, whose naming differs between BERT and ALBERT.
    """

    def __init__(self, hidden_size: int, num_heads: int, dtype, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = dense(hidden_size, hidden_size, dtype, rngs=rngs)
        self.key = dense(hidden_size, hidden_size, dtype, rngs=rngs)
        self.value = dense(hidden_size, hidden_size, dtype, rngs=rngs)

    def __call__(self, x_LxH: jax.Array, key_bias_L: jax.Array) -> jax.Array:
        def split(y):
            return y.reshape(y.shape[0], self.num_heads, -1)

        q, k, v = split(self.query(x_LxH)), split(self.key(x_LxH)), split(self.value(x_LxH))
        return attend(q, k, v, key_bias_L).reshape(x_LxH.shape[0], -1)


def attend(q_LxNxD, k_LxNxD, v_LxNxD, key_bias_L) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v, per head; scores and softmax in float32 or wider."""
    scale = q_LxNxD.shape[-1] ** -0.5
    scores = jnp.einsum("qnd,knd->nqk", q_LxNxD * scale, k_LxNxD)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) + key_bias_L
    weights = jax.nn.softmax(scores, axis=-1).astype(v_LxNxD.dtype)
    return jnp.einsum("nqk,knd->qnd", weights, v_LxNxD)


def padding_bias(length: jax.Array, width: int, dtype=jnp.float32) -> jax.Array:
    """Additive attention bias [width]: 0 for the first `length` tokens, most negative after."""
    return jnp.where(jnp.arange(width) < length, 0.0, jnp.finfo(dtype).min).astype(dtype)
