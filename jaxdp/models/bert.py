# SPDX-License-Identifier: Apache-2.0
"""BERT for multi-label report classification, numerically that of transformers.

Module and attribute names follow the published checkpoints (`encoder.layer.N.attention...`), so
that tensor names in `pretrained.py` and PEFT's in `peft.py` are read off the module paths.
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
    apply_once_traced,
    dense,
    layer_norm,
)

if TYPE_CHECKING:
    from transformers import BertConfig


class SelfOutput(nnx.Module):
    """Projection, residual, layer norm."""

    def __init__(self, in_features: int, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.dense = dense(in_features, cfg.hidden_size, dtype, rngs=rngs)
        self.LayerNorm = layer_norm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nnx.Module):
    def __init__(self, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.self = SelfAttention(cfg.hidden_size, cfg.num_attention_heads, dtype, rngs=rngs)
        self.output = SelfOutput(cfg.hidden_size, cfg, dtype, rngs=rngs)


class Intermediate(nnx.Module):
    def __init__(self, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.dense = dense(cfg.hidden_size, cfg.intermediate_size, dtype, rngs=rngs)


class Layer(nnx.Module):
    """One encoder layer: [L, H] and its length -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[cfg.hidden_act]
        self.attention = Attention(cfg, dtype, rngs=rngs)
        self.intermediate = Intermediate(cfg, dtype, rngs=rngs)
        self.output = SelfOutput(cfg.intermediate_size, cfg, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        first = x[:rows]
        x = self.attention.output(self.attention.self(first, x, length), first)
        return self.output(self.activation(self.intermediate.dense(x)), x)


class Encoder(nnx.Module):
    def __init__(self, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.layer = nnx.List(Layer(cfg, dtype, rngs=rngs) for _ in range(cfg.num_hidden_layers))


class Pooler(nnx.Module):
    """tanh(dense(first token)): [H] -> [H]."""

    def __init__(self, cfg: "BertConfig", dtype, *, rngs: nnx.Rngs):
        self.dense = dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.dense(x))


class BertBackbone(nnx.Module):
    def __init__(self, cfg: "BertConfig", pooling: str, dtype, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(cfg, cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)
        self.encoder = Encoder(cfg, dtype, rngs=rngs)
        if pooling == "cls":
            self.pooler = Pooler(cfg, dtype, rngs=rngs)


class BertClassifier(ReportClassifier):
    """transformers' BertForSequenceClassification ("cls"), or the same with a mean for pooling.

    Dropout is off: the guarantee does not need it and resumed steps stay reproducible.
    """

    prefix = "bert"

    def __init__(
        self, cfg: "BertConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth = cfg.num_hidden_layers
        self.bert = BertBackbone(cfg, pooling, dtype, rngs=rngs)
        self.add_head(pooling, cfg.hidden_size, num_labels, rngs=rngs)

    def apply_layer(self, index, x_LxH, length, rows):
        return apply_once_traced(self.bert.encoder.layer[index], x_LxH, length, rows)

    def pool_first(self, x_H):
        return self.bert.pooler(x_H)
