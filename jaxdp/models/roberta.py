# SPDX-License-Identifier: Apache-2.0
"""RoBERTa and XLM-RoBERTa, numerically those of transformers: BERT's layers under another head.

Positions are counted from behind the id of the padding token, so a table of 514 has 512.
"""

from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx

from .bert import Encoder
from .classifier import ReportClassifier
from .layers import Embeddings, apply_once_traced, dense

if TYPE_CHECKING:
    from transformers import RobertaConfig


class RobertaBackbone(nnx.Module):
    def __init__(self, cfg: "RobertaConfig", dtype, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(
            cfg, cfg.hidden_size, cfg.layer_norm_eps, cfg.pad_token_id, rngs=rngs
        )
        self.encoder = Encoder(cfg, dtype, rngs=rngs)  # ty: ignore[invalid-argument-type]


class RobertaClassifier(ReportClassifier):
    """transformers' RobertaForSequenceClassification ("cls"), or the same pooled otherwise.

    The first layer of its two-layer head is our pooler: it is not trained with the head.
    """

    prefix = "roberta"
    cls_names = {"pooler": "classifier.dense", "classifier": "classifier.out_proj"}
    backbone = RobertaBackbone

    def __init__(
        self, cfg: "RobertaConfig", num_labels: int, pooling: str, dtype=None, *, rngs: nnx.Rngs
    ):
        self.depth = cfg.num_hidden_layers
        setattr(self, self.prefix, self.backbone(cfg, dtype, rngs=rngs))
        if pooling == "cls":
            self.pooler = dense(cfg.hidden_size, cfg.hidden_size, dtype, rngs=rngs)
        self.add_head(pooling, cfg.hidden_size, num_labels, rngs=rngs)

    @classmethod
    def positions(cls, cfg):
        return cfg.max_position_embeddings - cfg.pad_token_id - 1

    def apply_layer(self, index, x_LxH, length, rows):
        return apply_once_traced(self.roberta.encoder.layer[index], x_LxH, length, rows)  # ty: ignore[missing-attribute]

    def pool_first(self, x_H):
        return jnp.tanh(self.pooler(x_H))
