# SPDX-License-Identifier: Apache-2.0
"""What BERT-family encoders share: activations, embeddings, attention.

Every module here works on ONE report, [L, H]; batches are made with `jax.vmap`. A model built from
them cannot mix two reports, which is what per-report clipping relies on.

`dtype` is the type matrix products run in (None: that of their operands). Layer norms, residuals,
softmax and logits stay in the parameters' own type, float32 or wider.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def elementwise(
    fn: Callable[[jax.Array], jax.Array], derivative: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """`fn`, which keeps nothing but its argument for the gradient and computes the derivative
    anew: one pass forward and one backward over the widest arrays of the model, where what the
    derivative is made of would be written and read several times."""

    @jax.custom_vjp
    def activation(x):
        return fn(x)

    def backward(x, cotangent):
        # Or XLA would see that both passes share terms, and keep those after all.
        return (cotangent * derivative(jax.lax.optimization_barrier(x)),)

    activation.defvjp(lambda x: (fn(x), x), backward)
    return activation


def standard_normal_cdf(x: jax.Array) -> jax.Array:
    """P(N(0, 1) <= x); absolute error below 3e-7 in float32, rounding alone in float64.

    Up to float32 the tail is exp(-x^2 / 2) times a polynomial (Abramowitz and Stegun, 1964,
    7.1.26), a third of the arithmetic of XLA's erf.
    """
    if jnp.finfo(x.dtype).bits > 32:
        return jax.scipy.stats.norm.cdf(x)
    t = 1 / (1 + 0.3275911 * 2**-0.5 * jnp.abs(x))
    poly = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    tail = 0.5 * t * (0.254829592 + t * (-0.284496736 + poly)) * jnp.exp(-0.5 * x * x)
    return jnp.where(x < 0, tail, 1 - tail)


def _gelu(x: jax.Array) -> jax.Array:
    return x * standard_normal_cdf(x)


def _gelu_derivative(x: jax.Array) -> jax.Array:
    return standard_normal_cdf(x) + x * jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5


_tanh_gelu = partial(jax.nn.gelu, approximate=True)


def _tanh_gelu_derivative(x: jax.Array) -> jax.Array:
    return jax.jvp(_tanh_gelu, (x,), (jnp.ones_like(x),))[1]


ACTIVATIONS = {
    "gelu": elementwise(_gelu, _gelu_derivative),
    "gelu_new": elementwise(_tanh_gelu, _tanh_gelu_derivative),
    "gelu_pytorch_tanh": elementwise(_tanh_gelu, _tanh_gelu_derivative),
    "relu": jax.nn.relu,
}
"""`hidden_act` of a config.json -> function, as transformers defines them."""


def layer_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over [..., width], with the two-pass variance that the reference uses."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


def dense(in_features: int, out_features: int, dtype, *, rngs: nnx.Rngs) -> nnx.Linear:
    """x @ kernel + bias with kernel [in, out]; the product runs in `dtype`."""
    return nnx.Linear(in_features, out_features, dtype=dtype, rngs=rngs)


class Embeddings(nnx.Module):
    """Word + position + segment embeddings (segment 0 throughout), normalised: [L] -> [L, E]."""

    def __init__(self, cfg: "PreTrainedConfig", width: int, *, rngs: nnx.Rngs):
        def table(rows):
            embed = nnx.Embed(rows, width, rngs=rngs)
            embed.dtype = None  # that of the weights that will be loaded, not of these
            return embed

        self.word_embeddings = table(cfg.vocab_size)
        self.position_embeddings = table(cfg.max_position_embeddings)
        self.token_type_embeddings = table(cfg.type_vocab_size)
        self.LayerNorm = layer_norm(width, cfg.layer_norm_eps, rngs=rngs)

    def __call__(self, token_ids_L: jax.Array) -> jax.Array:
        """ValueError for more tokens than there are positions, which JAX would quietly clamp."""
        length, longest = token_ids_L.shape[0], self.position_embeddings.num_embeddings
        if length > longest:
            raise ValueError(f"{length} tokens, but this backbone has {longest} positions")
        positions = jnp.arange(length)
        words = self.word_embeddings(token_ids_L)
        segment = self.token_type_embeddings(jnp.zeros_like(positions))
        return self.LayerNorm(words + segment + self.position_embeddings(positions))


class SelfAttention(nnx.Module):
    """Multi-head self-attention over one report: queries from [Q, H], keys and values from [L, H]
    of which `length` are real -> [Q, H].

    Covers the query, key and value projections and the softmax; the output projection and the
    residual belong to the encoder layer, whose naming differs between BERT and ALBERT.
    """

    def __init__(self, hidden_size: int, num_heads: int, dtype, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query = dense(hidden_size, hidden_size, dtype, rngs=rngs)
        self.key = dense(hidden_size, hidden_size, dtype, rngs=rngs)
        self.value = dense(hidden_size, hidden_size, dtype, rngs=rngs)

    def __call__(self, asking_QxH: jax.Array, x_LxH: jax.Array, length: jax.Array) -> jax.Array:
        def split(y):
            return y.reshape(y.shape[0], self.num_heads, -1)

        q, k, v = split(self.query(asking_QxH)), split(self.key(x_LxH)), split(self.value(x_LxH))
        return attend(q, k, v, length).reshape(asking_QxH.shape[0], -1)


@jax.custom_vjp
def softmax(x: jax.Array) -> jax.Array:
    """Over the last axis; one division per row, and the result is all the gradient keeps."""
    exponential = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponential * (1 / jnp.sum(exponential, axis=-1, keepdims=True))


def _softmax_backward(y, cotangent):
    return (y * (cotangent - jnp.sum(y * cotangent, axis=-1, keepdims=True)),)


softmax.defvjp(lambda x: (softmax(x),) * 2, _softmax_backward)


def attend(q_QxNxD, k_LxNxD, v_LxNxD, length: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v per head, over the first `length` keys: [Q, N, D].

    Scores and softmax in float32 or wider. cuDNN's fused attention where it exists (GPU, half
    precision), plain products elsewhere: on XLA's CPU backend no other order of axes, gradient in
    one piece or late normalisation was faster (docs/measurements/speed.md).
    """
    if _fused(q_QxNxD, k_LxNxD):
        # A row of padding has length 0, whose softmax would be NaN. Given for queries too, since
        # vmap does not take a length that is the same for all reports.
        lengths = jnp.maximum(length, 1)[None].astype(jnp.int32)
        return jax.nn.dot_product_attention(
            *(x[None] for x in (q_QxNxD, k_LxNxD, v_LxNxD)),
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )[0]
    scale = q_QxNxD.shape[-1] ** -0.5
    wide = jnp.promote_types(q_QxNxD.dtype, jnp.float32)
    scores = jnp.einsum("qnd,knd->nqk", q_QxNxD * scale, k_LxNxD, preferred_element_type=wide)
    padding_bias = jnp.where(jnp.arange(k_LxNxD.shape[0]) < length, 0.0, jnp.finfo(jnp.float32).min)
    weights = softmax(scores + padding_bias.astype(wide)).astype(v_LxNxD.dtype)
    return jnp.einsum("nqk,knd->qnd", weights, v_LxNxD)


def _fused(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN has this attention; decided while tracing, for the default platform."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape == k.shape and jax.default_backend() == "gpu"
