# SPDX-License-Identifier: Apache-2.0
"""ALBERT for multi-label report classification, numerically that of transformers.

A narrow embedding is widened once, and few groups of layers are applied many times. A parameter of
a group, or an adapter on it, is one, and acts at every depth that uses the group.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import ReportClassifier
from .layers import (
    ACTIVATIONS,
    Embeddings,
    SelfAttention,
    dense,
    layer_norm,
)

if TYPE_CHECKING:
    from transformers import AlbertConfig


class Attention(SelfAttention):
    """Self-attention with its projection, residual and layer norm: ALBERT keeps them in one."""

    def __init__(self, cfg: "AlbertConfig", dtype, *, rngs: nnx.Rngs):
        super().__init__(cfg.hidden_size, cfg.num_attention_heads, dtype, rngs=rngs)
        self.dense = dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs)
        self.LayerNorm = layer_norm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

    def __call__(self, asking: jax.Array, x: jax.Array, length: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(super().__call__(asking, x, length)) + asking)


class Layer(nnx.Module):
    """One encoder layer: [L, H] and its length -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "AlbertConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[cfg.hidden_act]
        self.attention = Attention(cfg, dtype, rngs=rngs)
        self.ffn = dense(cfg.hidden_size, cfg.intermediate_size, dtype, rngs=rngs)
        self.ffn_output = dense(cfg.intermediate_size, cfg.hidden_size, dtype, rngs=rngs)
        self.full_layer_layer_norm = layer_norm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        x = self.attention(x[:rows], x, length)
        return self.full_layer_layer_norm(self.ffn_output(self.activation(self.ffn(x))) + x)


class Group(nnx.Module):
    def __init__(self, cfg: "AlbertConfig", dtype, *, rngs: nnx.Rngs):
        self.albert_layers = nnx.List(
            Layer(cfg, dtype, rngs=rngs) for _ in range(cfg.inner_group_num)
        )


class Encoder(nnx.Module):
    def __init__(self, cfg: "AlbertConfig", dtype, *, rngs: nnx.Rngs):
        self.embedding_hidden_mapping_in = dense(
            cfg.embedding_size, cfg.hidden_size, dtype, rngs=rngs
        )
        self.albert_layer_groups = nnx.List(
            Group(cfg, dtype, rngs=rngs) for _ in range(cfg.num_hidden_groups)
        )


class AlbertBackbone(nnx.Module):
    def __init__(self, cfg: "AlbertConfig", pooling: str, dtype, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(cfg, cfg.embedding_size, cfg.layer_norm_eps, rngs=rngs)
        self.encoder = Encoder(cfg, dtype, rngs=rngs)
        if pooling == "cls":
            self.pooler = dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs)


class AlbertClassifier(ReportClassifier):
    """transformers' AlbertForSequenceClassification ("cls"), or the same with mean pooling."""

    prefix = "albert"

    def __init__(
        self, cfg: "AlbertConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth = cfg.num_hidden_layers
        # Which group each depth uses, in the floating-point form that defines it upstream.
        per_group = self.depth / cfg.num_hidden_groups
        self.groups = tuple(int(index / per_group) for index in range(self.depth))
        self.albert = AlbertBackbone(cfg, pooling, dtype, rngs=rngs)
        self.add_head(pooling, cfg.hidden_size, num_labels, rngs=rngs)

    def first_use(self, number):
        return self.groups.index(number)

    def embed(self, token_ids_L):
        narrow = self.albert.embeddings(token_ids_L)
        wide = self.albert.encoder.embedding_hidden_mapping_in(narrow)
        return wide.astype(narrow.dtype)  # the residual stream is not rounded to `dtype`

    def apply_layer(self, index, x_LxH, length, rows):
        *inner, last = self.albert.encoder.albert_layer_groups[self.groups[index]].albert_layers
        for layer in inner:
            x_LxH = layer(x_LxH, length, x_LxH.shape[0])
        return last(x_LxH, length, rows)

    def pool_first(self, x_H):
        return jnp.tanh(self.albert.pooler(x_H))
