# SPDX-License-Identifier: Apache-2.0
"""MPNet, numerically that of transformers: RoBERTa, and attention that knows distances."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .bert import Names, RobertaClassifier
from .layers import apply_once_traced, firsts, place, table

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


class MPNetClassifier(RobertaClassifier):
    """transformers' MPNetForSequenceClassification ("cls"), or the same pooled otherwise. Its head
    and its positions are RoBERTa's."""

    prefix = "mpnet"
    lora_targets = ("q", "v")
    names = Names(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attended="attention.attn.o",
        attended_norm="attention.LayerNorm",
    )

    @classmethod
    def padding(cls, cfg):
        return _PADDING

    @classmethod
    def check(cls, cfg):
        if cfg.relative_attention_num_buckets != _BUCKETS:
            raise ValueError(f"relative_attention_num_buckets must be {_BUCKETS}")

    def add_encoder(self, cfg, dtype, *, rngs):
        super().add_encoder(cfg, dtype, rngs=rngs)
        biases = table(_BUCKETS, cfg.num_attention_heads, rngs=rngs)
        place(self, "mpnet.encoder.relative_attention_bias", biases)

    def apply_layer(self, index, x_LxH, length, first):
        encoder, keys = self.backbone.encoder, jnp.arange(x_LxH.shape[0])
        queries = firsts(length, keys.shape[0]) if first else keys
        bias = encoder.relative_attention_bias(_kinds(queries, keys)).transpose(2, 0, 1)
        return apply_once_traced(encoder.layer[index], x_LxH, length, first, bias)


def _kinds(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Of the distances between positions: [queries, keys]."""
    distances = keys - queries[:, None]
    kinds = jnp.asarray(buckets_of(np.arange(-_FAR, _FAR + 1)))
    return kinds[jnp.clip(distances, -_FAR, _FAR) + _FAR]
