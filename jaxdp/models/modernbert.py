# SPDX-License-Identifier: Apache-2.0
"""ModernBERT, numerically that of transformers: long texts, rotary positions, local attention.

Layer norms come before attention and feed-forward, so the hidden states between layers are sums
that only a last norm brings to scale; every pooling reads them through it.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import ReportClassifier
from .layers import (
    ACTIVATIONS,
    asked_of,
    attend,
    check_positions,
    dense,
    layer_norm,
    owner_of,
    place,
    rotate,
    table,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Layer(nnx.Module):
    """One encoder layer, as `bert.Layer`."""

    attn: Any
    mlp: Any

    def __init__(self, cfg: "PreTrainedConfig", index: int, dtype, *, rngs: nnx.Rngs):
        width, inner, kind = cfg.hidden_size, cfg.intermediate_size, cfg.layer_types[index]
        self.num_heads = cfg.num_attention_heads
        self.theta = cfg.rope_parameters[kind]["rope_theta"]
        self.window = cfg.local_attention // 2 if kind == "sliding_attention" else None
        self.activation = ACTIVATIONS[cfg.hidden_activation]
        # The first layer reads embeddings, which are normalised already.
        self.attn_norm = _norm(cfg, dtype, rngs=rngs) if index else nnx.data(None)
        place(self, "attn.Wqkv", dense(width, 3 * width, dtype, cfg.attention_bias, rngs=rngs))
        place(self, "attn.Wo", dense(width, width, dtype, cfg.attention_bias, rngs=rngs))
        self.mlp_norm = _norm(cfg, dtype, rngs=rngs)
        place(self, "mlp.Wi", dense(width, 2 * inner, dtype, cfg.mlp_bias, rngs=rngs))
        place(self, "mlp.Wo", dense(inner, width, dtype, cfg.mlp_bias, rngs=rngs))

    def __call__(self, x: jax.Array, length: jax.Array, first: bool) -> jax.Array:
        normed = x if self.attn_norm is None else self.attn_norm(x)
        q, k, v = (
            y.reshape(x.shape[0], self.num_heads, -1)
            for y in jnp.split(self.attn.Wqkv(normed, owner_of(x, length)), 3, axis=-1)
        )
        q, k = (rotate(y, self.theta) for y in (q, k))
        (q, _), (x, asking) = asked_of(q, length, first), asked_of(x, length, first)
        y = attend(q, k, v, length, first=first, window=self.window).reshape(x.shape[0], -1)
        x = x + self.attn.Wo(y, asking)
        y, gate = jnp.split(self.mlp.Wi(self.mlp_norm(x), asking), 2, axis=-1)
        return x + self.mlp.Wo(self.activation(y) * gate, asking)


class ModernBertClassifier(ReportClassifier):
    """transformers' ModernBertForSequenceClassification ("cls"), or the same pooled otherwise.

    Its pooler is the head of masked language modelling, which is pretrained.
    """

    prefix = "model"
    layers_path = "layers"
    cls_names = {"pooler": "head"}
    lora_targets = ("Wqkv",)
    pooler: Any

    @classmethod
    def check(cls, cfg):
        if {rope["rope_type"] for rope in cfg.rope_parameters.values()} != {"default"}:
            raise ValueError("rope_type must be default")
        if cfg.local_attention < 2:
            raise ValueError(f"local_attention must be at least 2, not {cfg.local_attention}")

    def add_encoder(self, cfg, dtype, *, rngs):
        self.cls_is_mean = cfg.classifier_pooling == "mean"
        self.num_positions = cfg.max_position_embeddings
        words = table(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
        place(self, "model.embeddings.tok_embeddings", words)
        place(self, "model.embeddings.norm", _norm(cfg, rngs=rngs))
        layers = nnx.List(Layer(cfg, index, dtype, rngs=rngs) for index in range(self.depth))
        place(self, "model.layers", layers)
        place(self, "model.final_norm", _norm(cfg, rngs=rngs))

    def add_pooler(self, cfg, dtype, *, rngs):
        self.pooler_activation = ACTIVATIONS[cfg.classifier_activation]
        width, bias = cfg.hidden_size, cfg.classifier_bias
        place(self, "pooler.dense", dense(width, width, dtype, bias, rngs=rngs))
        place(self, "pooler.norm", _norm(cfg, rngs=rngs))

    def embed(self, token_ids_L, length):
        check_positions(token_ids_L, length, self.num_positions)  # they come with attention
        embeddings = self.backbone.embeddings
        return embeddings.norm(embeddings.tok_embeddings(token_ids_L))

    def output(self, x_LxH):
        return self.backbone.final_norm(x_LxH)

    def pool_first(self, x_H):
        return self.pooler.norm(self.pooler_activation(self.pooler.dense(x_H)))


def _norm(cfg: "PreTrainedConfig", dtype=None, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return layer_norm(cfg.hidden_size, cfg.norm_eps, dtype, cfg.norm_bias, rngs=rngs)
