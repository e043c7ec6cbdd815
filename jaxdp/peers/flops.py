# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a training step, counted from the model's sizes.

Only matrix products count, at 2 operations per multiply and add: what a step has to compute, not
what an implementation computes twice, and no per-report norms, clipping and noise. Backward, only
adapters and head have gradients of their own; all else that acts above the lowest adapter passes
one on; and nothing below it needs any.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def step_flops(
    positions: np.ndarray | float,
    encoder: Mapping[str, Any],
    *,
    labels: int,
    rank: int,
    adapted: int,
    first_layer: int,
    pooler: bool,
    cached: bool = False,
    pooled_only: bool = False,
    backward_passes: int = 1,
) -> np.ndarray | float:
    """Forward and backward of one report with this many positions; elementwise for an array.

    Args:
        positions: padding included.
        encoder: a parsed config.json.
        labels, rank: of the head, of LoRA.
        adapted: how many of query, key and value have adapters; the keys not.
        first_layer: the lowest with adapters.
        pooler: whether the first token goes through a pooler; otherwise all are averaged.
        cached: whether the layers below `first_layer` are computed once, outside of the step.
        pooled_only: whether the last layer is computed for the pooled token alone.
        backward_passes: 2 for ghost clipping.
    """
    length, wide = np.asarray(positions, np.float64), encoder["hidden_size"]
    layers = encoder["num_hidden_layers"]
    pooling = 2 * wide * (wide if pooler else length)
    forward, backward = pooling + 2 * wide * labels, pooling + 4 * wide * labels
    if encoder["model_type"] == "albert" and not (cached and first_layer):
        forward = forward + 2 * length * encoder["embedding_size"] * wide  # widens embeddings
    for layer in range(first_layer if cached else 0, layers):
        # Positions for which the layer's query, output projection and feed-forward are computed.
        rows = 1.0 if pooled_only and layer == layers - 1 else length
        dense, attention = 4 * (length + rows) * wide**2, 4 * rows * length * wide
        feed_forward = 4 * rows * wide * encoder["intermediate_size"]
        adapters = 4 * rank * wide * (rows + (adapted - 1) * length)
        forward = forward + dense + attention + feed_forward
        if layer >= first_layer:
            forward = forward + adapters
        if layer > first_layer:
            backward = backward + dense + 2 * attention + feed_forward + 2 * adapters
        elif layer == first_layer:
            output = 2 * rows * wide**2  # of the projections this one alone; of attention no keys
            backward = backward + output + 1.5 * attention + feed_forward + 1.5 * adapters
    return forward + backward_passes * backward
