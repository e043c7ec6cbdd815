# SPDX-License-Identifier: Apache-2.0
"""BERT, RoBERTa, XLM-RoBERTa and DistilBERT, numerically those of transformers.

They are one encoder whose parts have other names. Every part stands in the tree of modules where
the family's published checkpoints have it (`bert.encoder.layer.N.attention...`), so loading, LoRA
and PEFT read names off the paths.
"""

from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .classifier import ReportClassifier
from .layers import (
    ACTIVATIONS,
    Embeddings,
    asked_of,
    attend,
    dense,
    layer_norm,
    owner_of,
    place,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Names(NamedTuple):
    """Paths of a layer's parts."""

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attended: str = "attention.output.dense"
    attended_norm: str = "attention.output.LayerNorm"
    widened: str = "intermediate.dense"
    narrowed: str = "output.dense"
    output_norm: str = "output.LayerNorm"


class Layer(nnx.Module):
    """One encoder layer: [L, H] of the reports of these lengths -> its outputs, [L, H] or `first`
    the one for each report's first token alone.

    A bias, where there is one, is added to the scores.
    """

    def __init__(
        self, cfg: "PreTrainedConfig", family: type["BertClassifier"], dtype, *, rngs: nnx.Rngs
    ):
        width, inner, eps = cfg.hidden_size, getattr(cfg, family.inner), family.eps(cfg)
        self.names = names = family.names
        self.heads = cfg.num_attention_heads
        self.activation = ACTIVATIONS[getattr(cfg, family.activation)]
        for name in (names.query, names.key, names.value, names.attended):
            place(self, name, dense(width, width, dtype, rngs=rngs))
        place(self, names.attended_norm, layer_norm(width, eps, dtype, rngs=rngs))
        place(self, names.widened, dense(width, inner, dtype, rngs=rngs))
        place(self, names.narrowed, dense(inner, width, dtype, rngs=rngs))
        place(self, names.output_norm, layer_norm(width, eps, dtype, rngs=rngs))

    def __call__(
        self, x: jax.Array, length: jax.Array, first: bool, bias_NxQxL: jax.Array | None = None
    ) -> jax.Array:
        parts = attrgetter(*self.names)(self)
        query, key, value, attended, attended_norm, widened, narrowed, output_norm = parts
        owner, (asked, asking) = owner_of(x, length), asked_of(x, length, first)
        q, k, v = (
            projection(y, of).reshape(y.shape[0], self.heads, -1)
            for projection, y, of in ((query, asked, asking), (key, x, owner), (value, x, owner))
        )
        y = attend(q, k, v, length, first=first, bias_NxQxL=bias_NxQxL).reshape(asked.shape)
        x = attended_norm(attended(y, asking) + asked)
        return output_norm(narrowed(self.activation(widened(x, asking)), asking) + x)


class BertClassifier(ReportClassifier):
    """transformers' ...ForSequenceClassification of the family ("cls"), or the same pooled
    otherwise.

    Dropout is off: the guarantee does not need it and resumed steps stay reproducible.
    """

    prefix = "bert"
    names: ClassVar[Names] = Names()
    inner: ClassVar[str] = "intermediate_size"
    """Field of config.json: the width between a layer's last two products."""
    activation: ClassVar[str] = "hidden_act"
    """Field of config.json: what acts there."""
    pooler_path: ClassVar[str] = "bert.pooler.dense"
    pooler_activation = staticmethod(jnp.tanh)

    @classmethod
    def eps(cls, cfg: "PreTrainedConfig") -> float:
        """Of all layer norms."""
        return cfg.layer_norm_eps

    @classmethod
    def padding(cls, cfg: "PreTrainedConfig") -> int | None:
        """Where positions are counted from behind the id of the padding token, this id."""
        return None

    @classmethod
    def positions(cls, cfg):
        padding = cls.padding(cfg)
        return cfg.max_position_embeddings - (0 if padding is None else padding + 1)

    def add_encoder(self, cfg, dtype, *, rngs):
        embeddings = Embeddings(cfg, cfg.hidden_size, self.eps(cfg), self.padding(cfg), rngs=rngs)
        place(self, f"{self.prefix}.embeddings", embeddings)
        layers = nnx.List(Layer(cfg, type(self), dtype, rngs=rngs) for _ in range(self.depth))
        place(self.backbone, self.layers_path, layers)

    def add_pooler(self, cfg, dtype, *, rngs):
        place(self, self.pooler_path, dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs))

    def pool_first(self, x_H):
        return self.pooler_activation(attrgetter(self.pooler_path)(self)(x_H))


class RobertaClassifier(BertClassifier):
    """The first layer of its two-layer head is our pooler: it is not trained with the head."""

    prefix = "roberta"
    cls_names = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    pooler_path = "pooler"

    @classmethod
    def padding(cls, cfg):
        return cfg.pad_token_id


class DistilBertClassifier(BertClassifier):
    prefix = "distilbert"
    cls_names = {"pooler": "pre_classifier"}
    lora_targets = ("q_lin", "v_lin")
    inner, activation = "hidden_dim", "activation"
    names = Names(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attended="attention.out_lin",
        attended_norm="sa_layer_norm",
        widened="ffn.lin1",
        narrowed="ffn.lin2",
        output_norm="output_layer_norm",
    )
    layers_path = "transformer.layer"
    pooler_path = "pooler"
    pooler_activation = staticmethod(jax.nn.relu)

    @classmethod
    def eps(cls, cfg):
        return 1e-12  # no field of config.json
