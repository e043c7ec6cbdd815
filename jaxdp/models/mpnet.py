# SPDX-License-Identifier: Apache-2.0
"""MPNet, numerically that of transformers: BERT's layers, and attention that knows distances."""

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from . import layers
from .bert import Intermediate, SelfOutput
from .roberta import RobertaClassifier

if TYPE_CHECKING:
    from transformers import MPNetConfig

_PADDING = 1  # what positions are counted from, whatever config.json says
_BUCKETS, _FAR = 32, 128  # kinds of distances, and from where on they are all one


def buckets_of(distances: np.ndarray) -> np.ndarray:
    """The kind of each distance (key minus query): one each for the near ones, then for ranges that
    grow; half of them for keys behind the query."""
    half, exact = _BUCKETS // 2, _BUCKETS // 4
    n = np.abs(distances)
    # In float32: rounding decides where a range begins.
    ratio = np.maximum(n, 1).astype(np.float32) / np.float32(exact)
    far = exact + (np.log(ratio) / np.float32(math.log(_FAR / exact)) * (half - exact)).astype(int)
    return (distances > 0) * half + np.where(n < exact, n, np.minimum(far, half - 1))


class SelfAttention(layers.SelfAttention):
    names = ("q", "k", "v")

    def __init__(self, cfg: "MPNetConfig", dtype, *, rngs: nnx.Rngs):
        super().__init__(cfg.hidden_size, cfg.num_attention_heads, dtype, rngs=rngs)
        self.o = layers.dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs)


class Attention(nnx.Module):
    def __init__(self, cfg: "MPNetConfig", dtype, *, rngs: nnx.Rngs):
        self.attn = SelfAttention(cfg, dtype, rngs=rngs)
        self.LayerNorm = layers.layer_norm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)


class Layer(nnx.Module):
    """One encoder layer: [L, H], its length and biases -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "MPNetConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = layers.ACTIVATIONS[cfg.hidden_act]
        self.attention = Attention(cfg, dtype, rngs=rngs)
        self.intermediate = Intermediate(cfg, dtype, rngs=rngs)  # ty: ignore[invalid-argument-type]
        self.output = SelfOutput(cfg.intermediate_size, cfg, dtype, rngs=rngs)  # ty: ignore[invalid-argument-type]

    def __call__(self, x: jax.Array, length: jax.Array, rows: int, bias_NxQxL) -> jax.Array:
        first, attn = x[:rows], self.attention.attn
        x = self.attention.LayerNorm(attn.o(attn(first, x, length, bias_NxQxL)) + first)
        return self.output(self.activation(self.intermediate.dense(x)), x)


class Encoder(nnx.Module):
    def __init__(self, cfg: "MPNetConfig", dtype, *, rngs: nnx.Rngs):
        self.layer = nnx.List(Layer(cfg, dtype, rngs=rngs) for _ in range(cfg.num_hidden_layers))
        self.relative_attention_bias = layers.table(
            cfg.relative_attention_num_buckets, cfg.num_attention_heads, rngs=rngs
        )

    def bias(self, rows: int, length: int) -> jax.Array:
        """What every layer adds to the scores of the first `rows` queries: [N, rows, length]."""
        distances = jnp.arange(length) - jnp.arange(rows)[:, None]
        kinds = jnp.asarray(buckets_of(np.arange(-_FAR, _FAR + 1)))
        kinds = kinds[jnp.clip(distances, -_FAR, _FAR) + _FAR]
        return self.relative_attention_bias(kinds).transpose(2, 0, 1)


class MPNetBackbone(nnx.Module):
    def __init__(self, cfg: "MPNetConfig", dtype, *, rngs: nnx.Rngs):
        self.embeddings = layers.Embeddings(
            cfg, cfg.hidden_size, cfg.layer_norm_eps, _PADDING, rngs=rngs
        )
        self.encoder = Encoder(cfg, dtype, rngs=rngs)


class MPNetClassifier(RobertaClassifier):
    """transformers' MPNetForSequenceClassification ("cls"), or the same pooled otherwise."""

    prefix = "mpnet"
    lora_targets = ("q", "v")
    backbone = MPNetBackbone

    @classmethod
    def positions(cls, cfg):
        return cfg.max_position_embeddings - _PADDING - 1

    @classmethod
    def check(cls, cfg):
        if cfg.relative_attention_num_buckets != _BUCKETS:
            raise ValueError(f"relative_attention_num_buckets must be {_BUCKETS}")

    def apply_layer(self, index, x_LxH, length, rows):
        encoder = self.mpnet.encoder  # ty: ignore[missing-attribute]
        bias = encoder.bias(rows, x_LxH.shape[0])
        return layers.apply_once_traced(encoder.layer[index], x_LxH, length, rows, bias)
