# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, counted from the model's sizes.

Only matrix products count, at 2 operations per multiply and add: what a step has to compute, not
what an implementation computes twice. For a report of L positions (padding included), hidden size
H, feed-forward size F and LoRA of rank r on some of the query, key and value projections:

forward, a layer      8 L H^2 (four projections) + 4 L^2 H (attention) + 4 L H F,
                      and 4 L H r per adapted projection
backward, a layer     8 L H^2 + 8 L^2 H + 4 L H F, and 8 L H r per adapted projection: gradients of
                      activations only, but for the adapters
the lowest adapted    2 L H^2 (output projection) + 6 L^2 H (none of the keys) + 4 L H F, and
                      6 L H r: nothing below needs a gradient
those below it        forward only, or nothing where they are cached

The pooler adds 2 H^2 both ways (averaging over tokens 2 L H), the head of K labels 2 H K forward
and 4 H K backward, ALBERT's widening of embeddings of size E 2 L E H forward. Where only the pooled
token goes on (`pooled_only`, CLS pooling), the last layer has its query, output projection and
feed-forward for one position, and attention of L instead of L^2.

Ghost clipping goes backward twice. Per-report norms, clipping and noise are not counted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .job import Job


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """What one report costs, by its number of positions.

    Attributes:
        hidden, intermediate, layers: H, F, and how many layers are applied.
        labels: K.
        rank: r.
        adapted: how many of query, key and value have adapters; the keys not.
        first_layer: the lowest with adapters.
        embedding: E where embeddings are widened; 0 where they are not.
        pooler: whether the first token goes through a pooler; otherwise all are averaged.
        cached: whether the layers below `first_layer` are computed once, outside of the step.
        pooled_only: whether the last layer is computed for the pooled token alone.
        backward_passes: 2 for ghost clipping.
    """

    hidden: int
    intermediate: int
    layers: int
    labels: int
    rank: int = 8
    adapted: int = 2
    first_layer: int = 0
    embedding: int = 0
    pooler: bool = True
    cached: bool = False
    pooled_only: bool = False
    backward_passes: int = 1

    @classmethod
    def of(cls, encoder: Mapping[str, Any], **fields) -> "StepFlops":
        """From a parsed config.json; the other fields as they are named here."""
        wide = encoder["hidden_size"]
        narrow = encoder["embedding_size"] if encoder["model_type"] == "albert" else 0
        return cls(
            hidden=wide,
            intermediate=encoder["intermediate_size"],
            layers=encoder["num_hidden_layers"],
            embedding=narrow,
            **fields,
        )

    @classmethod
    def of_job(cls, job: Job, encoder: Mapping[str, Any], **fields) -> "StepFlops":
        """Of what the job trains, on a parsed config.json."""
        return cls.of(
            encoder,
            labels=len(job.label_names),
            rank=job.config.lora.rank,
            adapted=len(job.config.lora.targets or ("query", "value")),
            first_layer=job.config.lora.first_layer(encoder["num_hidden_layers"]),
            pooler=job.pooling == "cls",
            **fields,
        )

    def forward(self, positions: np.ndarray | float) -> np.ndarray | float:
        """Of one report with this many positions; elementwise for an array."""
        length, total = np.asarray(positions, np.float64), 0.0
        if self.first_layer == 0 or not self.cached:
            total = 2 * length * self.embedding * self.hidden
        for layer in range(self.first_layer if self.cached else 0, self.layers):
            dense, attention, ffn, lora = self._layer(layer, length)
            total = total + dense + attention + ffn + (lora if layer >= self.first_layer else 0)
        return total + self._pooling(length) + 2 * self.hidden * self.labels

    def backward(self, positions: np.ndarray | float) -> np.ndarray | float:
        """As `forward`."""
        length, total = np.asarray(positions, np.float64), 0.0
        for layer in range(self.first_layer, self.layers):
            dense, attention, ffn, lora = self._layer(layer, length)
            if layer > self.first_layer:
                total = total + dense + 2 * attention + ffn + 2 * lora
            else:
                output = 2 * self._rows(layer, length) * self.hidden**2
                total = total + output + 1.5 * attention + ffn + 1.5 * lora
        once = total + self._pooling(length) + 4 * self.hidden * self.labels
        return self.backward_passes * once

    def step(self, positions: np.ndarray | float) -> np.ndarray | float:
        """Forward and backward."""
        return self.forward(positions) + self.backward(positions)

    def _pooling(self, length):
        return 2 * self.hidden * (self.hidden if self.pooler else length)

    def _rows(self, layer: int, length):
        """Positions for which a layer's output is computed."""
        return 1.0 if self.pooled_only and layer == self.layers - 1 else length

    def _layer(self, layer: int, length) -> tuple:
        """(projections, attention, feed-forward, adapters), forward."""
        rows, wide = self._rows(layer, length), self.hidden
        dense = 4 * (length + rows) * wide**2
        lora = 4 * self.rank * wide * (rows + (self.adapted - 1) * length)
        return dense, 4 * rows * length * wide, 4 * rows * wide * self.intermediate, lora
