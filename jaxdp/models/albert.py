# SPDX-License-Identifier: Apache-2.0
"""ALBERT for multi-label report classification, numerically that of transformers.

A narrow embedding is widened once, and few groups of layers are applied many times. A parameter of
a group, or an adapter on it, is one, and acts at every depth that uses the group.
"""

from flax import nnx

from .bert import BertClassifier, Layer, Names
from .layers import Embeddings, apply_once_traced, dense, owner_of, place


class Group(nnx.Module):
    def __init__(self, layers: list[Layer]):
        self.albert_layers = nnx.List(layers)


class AlbertClassifier(BertClassifier):
    """transformers' AlbertForSequenceClassification ("cls"), or the same pooled otherwise."""

    prefix = "albert"
    names = Names(
        query="attention.query",
        key="attention.key",
        value="attention.value",
        attended="attention.dense",
        attended_norm="attention.LayerNorm",
        widened="ffn",
        narrowed="ffn_output",
        output_norm="full_layer_layer_norm",
    )
    pooler_path = "albert.pooler"

    def add_encoder(self, cfg, dtype, *, rngs):
        # Which group each depth uses, in the floating-point form that defines it upstream.
        per_group = self.depth / cfg.num_hidden_groups
        self.groups = tuple(int(index / per_group) for index in range(self.depth))
        narrow = cfg.embedding_size
        place(self, "albert.embeddings", Embeddings(cfg, narrow, self.eps(cfg), None, rngs=rngs))
        widening = dense(narrow, cfg.hidden_size, dtype, rngs=rngs)
        place(self, "albert.encoder.embedding_hidden_mapping_in", widening)
        groups = nnx.List(
            Group([Layer(cfg, type(self), dtype, rngs=rngs) for _ in range(cfg.inner_group_num)])
            for _ in range(cfg.num_hidden_groups)
        )
        place(self, "albert.encoder.albert_layer_groups", groups)

    def first_use(self, number):
        return self.groups.index(number)

    def embed(self, token_ids_L, length):
        narrow = self.backbone.embeddings(token_ids_L, length)
        widen = self.backbone.encoder.embedding_hidden_mapping_in
        wide = widen(narrow, owner_of(narrow, length))
        return wide.astype(narrow.dtype)

    def apply_layer(self, index, x_LxH, length, first):
        *inner, last = self.backbone.encoder.albert_layer_groups[self.groups[index]].albert_layers
        for layer in inner:
            x_LxH = apply_once_traced(layer, x_LxH, length, False)
        return apply_once_traced(last, x_LxH, length, first)
