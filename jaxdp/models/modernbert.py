# SPDX-License-Identifier: Apache-2.0
"""ModernBERT, numerically that of transformers: long texts, rotary positions, local attention.

Layer norms come before attention and feed-forward, so the hidden states between layers are sums
that only a last norm brings to scale; every pooling reads them through it.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import ReportClassifier
from .layers import (
    ACTIVATIONS,
    apply_once_traced,
    attend,
    check_positions,
    dense,
    layer_norm,
    rotate,
    table,
)

if TYPE_CHECKING:
    from transformers import ModernBertConfig


class Embeddings(nnx.Module):
    """Word embeddings, normalised: [L] -> [L, H]. Positions come with attention."""

    def __init__(self, cfg: "ModernBertConfig", *, rngs: nnx.Rngs):
        self.positions = cfg.max_position_embeddings
        self.tok_embeddings = table(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        self.norm = _norm(cfg, rngs=rngs)

    def __call__(self, token_ids_L: jax.Array) -> jax.Array:
        check_positions(token_ids_L, self.positions)
        return self.norm(self.tok_embeddings(token_ids_L))


class Attention(nnx.Module):
    """[L, H] and its length -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "ModernBertConfig", kind: str, dtype, *, rngs: nnx.Rngs):
        width, bias = cfg.hidden_size, cfg.attention_bias
        self.num_heads = cfg.num_attention_heads
        self.theta = cfg.rope_parameters[kind]["rope_theta"]  # ty: ignore[invalid-argument-type, not-subscriptable]
        self.window = cfg.local_attention // 2 if kind == "sliding_attention" else None
        self.Wqkv = dense(width, 3 * width, dtype, bias, rngs=rngs)
        self.Wo = dense(width, width, dtype, bias, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        q, k, v = (
            y.reshape(x.shape[0], self.num_heads, -1) for y in jnp.split(self.Wqkv(x), 3, axis=-1)
        )
        q, k = rotate(q[:rows], self.theta), rotate(k, self.theta)
        return self.Wo(attend(q, k, v, length, window=self.window).reshape(rows, -1))


class MLP(nnx.Module):
    def __init__(self, cfg: "ModernBertConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[cfg.hidden_activation]
        width, inner, bias = cfg.hidden_size, cfg.intermediate_size, cfg.mlp_bias
        self.Wi = dense(width, 2 * inner, dtype, bias, rngs=rngs)
        self.Wo = dense(inner, width, dtype, bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, gate = jnp.split(self.Wi(x), 2, axis=-1)
        return self.Wo(self.activation(x) * gate)


class Layer(nnx.Module):
    """One encoder layer: [L, H] and its length -> its first `rows` outputs [rows, H]."""

    def __init__(self, cfg: "ModernBertConfig", index: int, dtype, *, rngs: nnx.Rngs):
        # The first layer reads embeddings, which are normalised already.
        self.attn_norm = _norm(cfg, rngs=rngs) if index else nnx.data(None)
        self.attn = Attention(cfg, cfg.layer_types[index], dtype, rngs=rngs)  # ty: ignore[not-subscriptable]
        self.mlp_norm = _norm(cfg, rngs=rngs)
        self.mlp = MLP(cfg, dtype, rngs=rngs)

    def __call__(self, x: jax.Array, length: jax.Array, rows: int) -> jax.Array:
        normed = x if self.attn_norm is None else self.attn_norm(x)
        x = x[:rows] + self.attn(normed, length, rows)
        return x + self.mlp(self.mlp_norm(x))


class ModernBertBackbone(nnx.Module):
    def __init__(self, cfg: "ModernBertConfig", dtype, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(cfg, rngs=rngs)
        self.layers = nnx.List(
            Layer(cfg, index, dtype, rngs=rngs) for index in range(cfg.num_hidden_layers)
        )
        self.final_norm = _norm(cfg, rngs=rngs)


class Pooler(nnx.Module):
    """The head of masked language modelling, which is pretrained: [H] -> [H]."""

    def __init__(self, cfg: "ModernBertConfig", dtype, *, rngs: nnx.Rngs):
        self.activation = ACTIVATIONS[cfg.classifier_activation]
        width = cfg.hidden_size
        self.dense = dense(width, width, dtype, cfg.classifier_bias, rngs=rngs)
        self.norm = _norm(cfg, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.activation(self.dense(x)))


class ModernBertClassifier(ReportClassifier):
    """transformers' ModernBertForSequenceClassification ("cls"), or the same pooled otherwise."""

    prefix = "model"
    cls_names = {"pooler": "head"}
    lora_targets = ("Wqkv",)

    def __init__(
        self, cfg: "ModernBertConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth = cfg.num_hidden_layers
        self.cls_is_mean = cfg.classifier_pooling == "mean"
        self.model = ModernBertBackbone(cfg, dtype, rngs=rngs)
        if pooling == "cls":
            self.pooler = Pooler(cfg, dtype, rngs=rngs)
        self.add_head(pooling, cfg.hidden_size, num_labels, rngs=rngs)

    @classmethod
    def check(cls, cfg):
        if {rope["rope_type"] for rope in cfg.rope_parameters.values()} != {"default"}:
            raise ValueError("rope_type must be default")
        if cfg.local_attention < 2:
            raise ValueError(f"local_attention must be at least 2, not {cfg.local_attention}")

    def apply_layer(self, index, x_LxH, length, rows):
        return apply_once_traced(self.model.layers[index], x_LxH, length, rows)

    def output(self, x_LxH):
        return self.model.final_norm(x_LxH)

    def pool_first(self, x_H):
        return self.pooler(x_H)


def _norm(cfg: "ModernBertConfig", *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(cfg.hidden_size, cfg.norm_eps, cfg.norm_bias, rngs=rngs)
