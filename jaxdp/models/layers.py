# SPDX-License-Identifier: Apache-2.0
"""What BERT-family encoders share: activations, embeddings, attention.

Every module here works on ONE row, [L, H]; batches are made with `jax.vmap`. A model built from
them cannot mix two rows, which is what per-report clipping relies on.

A row is one report, whose `length` is a number, or the K reports of lengths [K], end to end. What
reads several positions keeps those apart: another report's numbers are multiplied by zero, and
first made such that this is zero, `bounded` in the value and `bounded_back` in the gradient.

`dtype` is the type matrix products run in, and what stands between them in a layer: residuals, what
norms and activations give (None: that of the parameters). Means and variances, softmax and logits
are float32 or wider.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def elementwise(
    fn: Callable[[jax.Array], jax.Array], derivative: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], jax.Array]:
    """`fn`, which keeps nothing but its argument for the gradient and computes the derivative
    anew: of the widest arrays of the model, parts of it would be written and read again."""

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


def layer_norm(
    width: int, eps: float, dtype=None, bias: bool = True, *, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """LayerNorm over [..., width], with the two-pass variance that the reference uses. The result
    alone is rounded to `dtype`, which None leaves to operands and parameters."""
    return nnx.LayerNorm(
        width, epsilon=eps, dtype=dtype, use_bias=bias, use_fast_variance=False, rngs=rngs
    )


class Linear(nnx.Linear):
    """Of every position alike, whatever report it is of, as only an adapter needs to know."""

    def __call__(self, x: jax.Array, owner: jax.Array | None = None) -> jax.Array:
        del owner
        return super().__call__(x)


def dense(
    in_features: int, out_features: int, dtype, bias: bool = True, *, rngs: nnx.Rngs
) -> nnx.Linear:
    """x @ kernel + bias with kernel [in, out]; the product runs in `dtype`."""
    return Linear(in_features, out_features, use_bias=bias, dtype=dtype, rngs=rngs)


def table(rows: int, width: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Row numbers [...] -> [..., width]."""
    embed = nnx.Embed(rows, width, rngs=rngs)
    embed.dtype = None  # that of the weights that will be loaded, not of these
    return embed


def place(module: nnx.Module, path: str, part: Any) -> None:
    """module.a.b = part for the path "a.b", with a plain module for each name before the last that
    is not there yet."""
    *before, last = path.split(".")
    for name in before:
        if not hasattr(module, name):
            setattr(module, name, nnx.Module())
        module = getattr(module, name)
    setattr(module, last, part)


_LARGEST = 1e17
"""No number in a model that works is near it, and sums of products of two still are float32."""


def _is_bounded(x: jax.Array) -> jax.Array:
    return jnp.abs(x) <= _LARGEST  # NaN is not


@jax.custom_vjp
def bounded(x: jax.Array) -> jax.Array:
    """x, with 0 for what is not finite or beyond `_LARGEST`: times zero it would be NaN."""
    return jnp.where(_is_bounded(x), x, 0)


bounded.defvjp(lambda x: (bounded(x), None), lambda _, cotangent: (cotangent,))


@jax.custom_vjp
def bounded_back(x: jax.Array) -> jax.Array:
    """x, whose gradient is `bounded`."""
    return x


bounded_back.defvjp(lambda x: (x, None), lambda _, cotangent: (bounded(cotangent),))


def owners(length: jax.Array, positions: int) -> jax.Array:
    """[positions]: which report of the row each is of; 1 more than the last behind them all."""
    ends = jnp.cumsum(jnp.atleast_1d(length))
    return jnp.sum(jnp.arange(positions)[:, None] >= ends, axis=1)


def firsts(length: jax.Array, positions: int) -> jax.Array:
    """[reports]: where in the row each begins."""
    ends = jnp.cumsum(jnp.atleast_1d(length))
    return jnp.minimum(ends - length, positions - 1)  # an empty one may stand behind the row


def several(length: jax.Array) -> bool:
    """Whether a row is of several reports."""
    return jnp.ndim(length) > 0


def owner_of(x_LxH: jax.Array, length: jax.Array) -> jax.Array | None:
    """`owners` of a row's positions; None where all are one report's."""
    return owners(length, len(x_LxH)) if several(length) else None


class Embeddings(nnx.Module):
    """Word + position + segment embeddings (segment 0 throughout, where the family has segments),
    normalised: [L] -> [L, E].

    Args:
        padding: where positions are counted as fairseq does, the id of the padding token: the first
            token is at padding + 1, and a padding token, wherever it stands, at padding itself.
    """

    def __init__(self, cfg, width: int, eps: float, padding: int | None, *, rngs: nnx.Rngs):
        self.word_embeddings = table(cfg.vocab_size, width, rngs=rngs)
        self.position_embeddings = table(cfg.max_position_embeddings, width, rngs=rngs)
        self.segments = hasattr(cfg, "type_vocab_size")
        if self.segments:
            self.token_type_embeddings = table(cfg.type_vocab_size, width, rngs=rngs)
        self.LayerNorm = layer_norm(width, eps, rngs=rngs)
        self.padding = padding

    def __call__(self, token_ids_L: jax.Array, length: jax.Array) -> jax.Array:
        first = 0 if self.padding is None else self.padding + 1
        check_positions(token_ids_L, length, self.position_embeddings.num_embeddings - first)
        positions = jnp.arange(token_ids_L.shape[0])
        if self.padding is not None:
            is_token = token_ids_L != self.padding
            positions = jnp.cumsum(is_token) - is_token
        if several(length):
            owner, begin = owners(length, len(positions)), firsts(length, len(positions))
            real = owner < len(begin)
            positions = jnp.where(real, positions - positions[begin[jnp.where(real, owner, 0)]], 0)
        if self.padding is not None:
            positions = (positions + 1) * is_token + self.padding
        x = self.word_embeddings(token_ids_L) + self.position_embeddings(positions)
        if self.segments:
            x = x + self.token_type_embeddings(jnp.zeros_like(positions))
        return self.LayerNorm(x)


def check_positions(token_ids_L: jax.Array, length: jax.Array, positions: int) -> None:
    """ValueError for a report of more tokens than a backbone has positions, which JAX would quietly
    clamp."""
    if (tokens := token_ids_L.shape[0]) > positions and not several(length):
        raise ValueError(f"{tokens} tokens, but this backbone has {positions} positions")


@jax.custom_vjp
def softmax(x: jax.Array) -> jax.Array:
    """Over the last axis; one division per row, and the result is all the gradient keeps."""
    exponential = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return exponential * (1 / jnp.sum(exponential, axis=-1, keepdims=True))


def _softmax_backward(y, cotangent):
    return (y * (cotangent - jnp.sum(y * cotangent, axis=-1, keepdims=True)),)


softmax.defvjp(lambda x: (y := softmax(x), y), _softmax_backward)


def rotate(x_LxNxD: jax.Array, theta: float) -> jax.Array:
    """Rotary positions (Su et al., 2021): of the token at position i, features d and d + D/2 are
    turned by the angle i theta^(-2d/D), in float32 or wider."""
    length, _, width = x_LxNxD.shape
    wide = jnp.promote_types(x_LxNxD.dtype, jnp.float32)
    frequencies = jnp.asarray(theta ** -(np.arange(0, width, 2) / width), wide)
    angles = jnp.outer(jnp.arange(length, dtype=wide), frequencies)[:, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x_LxNxD.astype(wide), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_LxNxD.dtype)


_BLOCK = 512
"""Queries whose scores are in memory at once, where a text has more than twice as many tokens."""


def attend(
    q_QxNxD: jax.Array,
    k_LxNxD: jax.Array,
    v_LxNxD: jax.Array,
    length: jax.Array,
    *,
    first: bool = False,
    bias_NxQxL: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(D) + bias) v per head, over the keys of the query's report: [Q, N, D].

    With a `window`, over those of them that are at most so far from the query. Queries are those of
    all tokens, or of the `first` one of each report. Scores and softmax in float32 or wider. Memory
    grows with Q, not with Q L: a long report is worked through by blocks of queries, whose scores
    the gradient computes anew, as it does those of a wide row that reports share.

    cuDNN's fused attention where it exists (GPU, half precision), plain products elsewhere: on
    XLA's CPU backend no other order of axes, gradient in one piece or late normalisation was faster
    (docs/measurements/speed.md).
    """
    if several(length):
        return _attend_apart(q_QxNxD, k_LxNxD, v_LxNxD, length, first, bias_NxQxL, window)
    if window is None and bias_NxQxL is None and _fused(q_QxNxD, k_LxNxD):
        # A row of padding has length 0, whose softmax would be NaN. Given for queries too, since
        # vmap does not take a length that is the same for all reports.
        lengths = jnp.maximum(length, 1)[None].astype(jnp.int32)
        return jax.nn.dot_product_attention(
            *(x[None] for x in (q_QxNxD, k_LxNxD, v_LxNxD)),
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )[0]
    many = 2 * _BLOCK if window is None else 4 * window
    queries = q_QxNxD.shape[0]
    if isinstance(queries, int) and queries > many and bias_NxQxL is None:  # else any, of an export
        return _by_blocks(q_QxNxD, k_LxNxD, v_LxNxD, length, window)
    keys = jnp.arange(k_LxNxD.shape[0])
    seen = keys < length
    if window is not None:
        seen &= jnp.abs(keys - jnp.arange(queries)[:, None]) <= window
    return _attend(q_QxNxD, k_LxNxD, v_LxNxD, seen, bias_NxQxL)


def _attend_apart(q, k, v, length: jax.Array, first: bool, bias_NxQxL, window) -> jax.Array:
    """`attend` within each report of a row: NaN where a query, or what it sees, is not bounded, as
    it may be for a report by itself; 0 for an empty place, which sees nothing."""
    owner, keys = owners(length, len(k)), jnp.arange(len(k))
    asking, queries = (jnp.arange(len(q)), firsts(length, len(k))) if first else (owner, keys)
    seen = asking[:, None] == owner
    if window is not None:
        seen &= jnp.abs(keys - queries[:, None]) <= window
    lost_q, lost_k, lost_v = (~_is_bounded(x).all(axis=(1, 2)) for x in (q, k, v))
    lost = lost_q | (seen & (lost_k | lost_v)).any(axis=1)
    attention = _attend if len(k) <= _BLOCK // 2 else jax.checkpoint(_attend)
    y = bounded_back(attention(bounded(q), bounded(k), bounded(v), seen, bias_NxQxL))
    y = jnp.where(seen.any(axis=1)[:, None, None], y, 0) if first else y
    return jnp.where(lost[:, None, None], jnp.nan, y)


def _attend(q_QxNxD, k_LxNxD, v_LxNxD, seen: jax.Array, bias_NxQxL=None) -> jax.Array:
    """Over the keys that are `seen`: [L], or by each query [Q, L]."""
    scale = q_QxNxD.shape[-1] ** -0.5
    wide = jnp.promote_types(q_QxNxD.dtype, jnp.float32)
    scores = jnp.einsum("qnd,knd->nqk", q_QxNxD * scale, k_LxNxD, preferred_element_type=wide)
    if bias_NxQxL is not None:
        scores = scores + bias_NxQxL
    padding_bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
    weights = softmax(scores + padding_bias.astype(wide)).astype(v_LxNxD.dtype)
    return jnp.einsum("nqk,knd->qnd", weights, v_LxNxD)


def _by_blocks(q, k, v, length, window: int | None) -> jax.Array:
    """`attend` for a block of queries at a time, each with the keys that it can see."""
    block = _BLOCK if window is None else 2 * window
    count = -(-len(q) // block)
    blocks = jnp.pad(q, ((0, count * block - len(q)), (0, 0), (0, 0)))
    blocks = blocks.reshape(count, block, *q.shape[1:])
    if window is None:
        one = jax.checkpoint(lambda asking: _attend(asking, k, v, jnp.arange(len(k)) < length))
        out = jax.lax.map(one, blocks)
    else:
        # Beyond both ends, where nothing is seen, for blocks to be of one size.
        around = ((window, count * block + window - len(k)), (0, 0), (0, 0))
        k, v = jnp.pad(k, around), jnp.pad(v, around)

        @jax.checkpoint
        def near(asking, start):
            keys = start - window + jnp.arange(2 * block)
            distance = jnp.abs(keys - (start + jnp.arange(block))[:, None])
            seen = (keys >= 0) & (keys < length) & (distance <= window)
            around = (jax.lax.dynamic_slice_in_dim(x, start, 2 * block) for x in (k, v))
            return _attend(asking, *around, seen)

        out = jax.vmap(near)(blocks, block * jnp.arange(count))
    return out.reshape(count * block, *q.shape[1:])[: len(q)]


def _fused(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN has this attention; decided while tracing, for the default platform."""
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return half and q.shape == k.shape and jax.default_backend() == "gpu"


@partial(jax.jit, static_argnums=(0, 4))
def _apply(graphdef, state, x_LxH, length, first, *more):
    return nnx.merge(graphdef, state)(x_LxH, length, first, *more)


def apply_once_traced(layer: nnx.Module, x_LxH: jax.Array, length, first: bool, *more) -> jax.Array:
    """layer(x, length, first, *more), as a function of its own: layers of one kind are traced
    once."""
    return _apply(*nnx.split(layer), x_LxH, length, first, *more)


def asked_of(
    x_LxH: jax.Array, length: jax.Array, first: bool
) -> tuple[jax.Array, jax.Array | None]:
    """(the positions [Q, H] whose outputs are asked of a layer, `owner_of` each): all, or the first
    one of each report."""
    if not first:
        return x_LxH, owner_of(x_LxH, length)
    if not several(length):
        return x_LxH[:1], None
    return x_LxH[firsts(length, len(x_LxH))], jnp.arange(len(length))
