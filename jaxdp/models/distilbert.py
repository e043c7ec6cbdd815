# SPDX-License-Identifier: Apache-2.0
"""DistilBERT, numerically that of transformers: BERT without segments, under names of its own."""

from typing import TYPE_CHECKING

import jax
from flax import nnx

from .classifier import ReportClassifier
from .layers import ACTIVATIONS, Embeddings, SelfAttention, apply_once_traced, dense, layer_norm

if TYPE_CHECKING:
    from transformers import DistilBertConfig

_EPS = 1e-12  # of every layer norm; no field of config.json


class Attention(SelfAttention):
    names = ("q_lin", "k_lin", "v_lin")

    def __init__(self, cfg: "DistilBertConfig", dtype, *, rngs: nnx.Rngs):
        super().__init__(cfg.dim, cfg.n_heads, dtype, rngs=rngs)
        self.out_lin = dense(cfg.dim, cfg.dim, dtype, rngs=rngs)

    def __call__(self, asking_QxH: jax.Array, x_LxH: jax.Array, length: jax.Array) -> jax.Array:
        return self.out_lin(super().__call__(asking_QxH, x_LxH, length))


class FFN(nnx.Module):
    def __init__(self, cfg: "DistilBertConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[cfg.activation]
        self.lin1 = dense(cfg.dim, cfg.hidden_dim, dtype, rngs=rngs)
        self.lin2 = dense(cfg.hidden_dim, cfg.dim, dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.lin2(self.activation(self.lin1(x)))


class Layer(nnx.Module):
    """One encoder layer: [L, H] and its length -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "DistilBertConfig", dtype, *, rngs: nnx.Rngs):
        self.attention = Attention(cfg, dtype, rngs=rngs)
        self.sa_layer_norm = layer_norm(cfg.dim, _EPS, rngs=rngs)
        self.ffn = FFN(cfg, dtype, rngs=rngs)
        self.output_layer_norm = layer_norm(cfg.dim, _EPS, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        first = x[:rows]
        x = self.sa_layer_norm(self.attention(first, x, length) + first)
        return self.output_layer_norm(self.ffn(x) + x)


class Transformer(nnx.Module):
    def __init__(self, cfg: "DistilBertConfig", dtype, *, rngs: nnx.Rngs):
        self.layer = nnx.List(Layer(cfg, dtype, rngs=rngs) for _ in range(cfg.n_layers))


class DistilBertBackbone(nnx.Module):
    def __init__(self, cfg: "DistilBertConfig", dtype, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(cfg, cfg.dim, _EPS, rngs=rngs)
        self.transformer = Transformer(cfg, dtype, rngs=rngs)


class DistilBertClassifier(ReportClassifier):
    """transformers' DistilBertForSequenceClassification ("cls"), or the same pooled otherwise."""

    prefix = "distilbert"
    cls_names = {"pooler": "pre_classifier"}
    lora_targets = ("q_lin", "v_lin")

    def __init__(
        self, cfg: "DistilBertConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth = cfg.n_layers
        self.distilbert = DistilBertBackbone(cfg, dtype, rngs=rngs)
        if pooling == "cls":
            self.pooler = dense(cfg.dim, cfg.dim, dtype, rngs=rngs)
        self.add_head(pooling, cfg.dim, num_labels, rngs=rngs)

    def apply_layer(self, index, x_LxH, length, rows):
        return apply_once_traced(self.distilbert.transformer.layer[index], x_LxH, length, rows)

    def pool_first(self, x_H):
        return jax.nn.relu(self.pooler(x_H))
