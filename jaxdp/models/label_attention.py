# SPDX-License-Identifier: Apache-2.0
"""Label attention: every label reads the tokens that speak of it, and has a feature of its own.

The head of medical coding (CAML, arXiv 1802.05695; LAAT, 2007.06351; PLM-ICD, 2207.05289). For the
states h_t of a report's tokens and the query q_l of label l

    a_lt = softmax over real tokens of q_l . h_t
    f_l = sum_t a_lt h_t
    logit_l = w_l . f_l + b_l

so the head has as many numbers as one on a single pooled feature. Queries of zero read the mean.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from .layers import softmax


class LabelAttention(nnx.Module):
    """[L, H] token states and which are real -> one feature for each label [labels, H].

    Scores and softmax in float32 or wider.
    """

    def __init__(self, num_labels: int, width: int):
        self.queries = nnx.Param(jnp.zeros((num_labels, width)))

    def weights(self, x_LxH: jax.Array, real_L: jax.Array) -> jax.Array:
        """How much each label reads of each token: [labels, L], rows add up to 1."""
        queries = self.queries[...]
        wide = jnp.promote_types(jnp.promote_types(x_LxH.dtype, queries.dtype), jnp.float32)
        scores = jnp.einsum("nh,lh->nl", queries, x_LxH, preferred_element_type=wide)
        return softmax(jnp.where(real_L, scores, jnp.finfo(jnp.float32).min).astype(wide))

    def __call__(self, x_LxH: jax.Array, real_L: jax.Array) -> jax.Array:
        return self.weights(x_LxH, real_L) @ x_LxH


def unit(x: jax.Array) -> jax.Array:
    """Vectors [..., H] of length 1 in the same directions; one of zeros stays that."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def bias_of(head: nnx.Linear) -> jax.Array:
    return head.bias[...]  # ty: ignore[not-subscriptable]  # a head has one


class LabelHead(nnx.Linear):
    """[labels, H] -> [labels] logits: label l's own column of the kernel [H, labels] on its own
    feature."""

    def __call__(self, f_NxH: jax.Array) -> jax.Array:
        return jnp.sum(f_NxH * self.kernel[...].T, axis=-1) + bias_of(self)


class Basis(nnx.Module):
    """Public coordinates in which a head is trained: (f - center), along `directions` if given.

    The head on them computes what one on f does; it only is better conditioned, and with K < H
    directions has fewer numbers.

    Args:
        center: [H], or [labels, H].
        directions: [labels, H, K], orthonormal columns for each label; None keeps all of f.
    """

    def __init__(self, center: jax.Array, directions: jax.Array | None = None):
        self.center = nnx.Param(center)
        self.directions = nnx.data(None if directions is None else nnx.Param(directions))

    def __call__(self, f: jax.Array) -> jax.Array:
        f = f - self.center[...]
        return f if self.directions is None else along(f, self.directions[...])


def along(f: jax.Array, directions: jax.Array) -> jax.Array:
    """Coordinates [..., labels, K] of features [..., labels, H] along [labels, H, K]."""
    return jnp.einsum("...nh,nhk->...nk", f, directions)
