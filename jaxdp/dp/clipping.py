# SPDX-License-Identifier: Apache-2.0
"""Per-report clipping: the bound on what one report can add to a step.

The released quantity is always a SUM of clipped gradients. Dividing is done after the noise,
by a configured number (`noise.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax


class ClipDiagnostics(NamedTuple):
    """Un-noised per-report values [rows]: private, never part of a release."""

    loss: jax.Array
    """Loss of each report."""
    norm: jax.Array
    """Gradient norm before clipping; 0 for padding and for non-finite gradients."""


class OuterProducts(NamedTuple):
    """A leaf [B, M, N] of per-report gradients that are outer products, as those of a linear layer
    on one input are: row i stands for outer(left[i], right[i]), which is never formed (Goodfellow,
    2015)."""

    left: jax.Array
    """[B, M], or [M] for one report: inputs of the layer."""
    right: jax.Array
    """[B, N], or [N]: gradients of its outputs."""


class ColumnProducts(NamedTuple):
    """A leaf [B, M, N] of per-report gradients whose columns are products, as those of N outputs
    that each read an input of their own are: column n of row i stands for left[i, n] * right[i, n],
    which is never formed."""

    left: jax.Array
    """[B, N, M], or [N, M] for one report: each output's input."""
    right: jax.Array
    """[B, N], or [N]: gradients of the outputs."""


def _is_product(g: Any) -> bool:
    return isinstance(g, OuterProducts | ColumnProducts)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def per_report_norms(gradients: Any) -> jax.Array:
    """Global L2 norm of each report's gradient: leaves [B, ...], `OuterProducts` or
    `ColumnProducts` -> [B], float32 or wider."""

    def norm(x):
        # Scaled by its largest entry: a tiny factor's square must not vanish beside a huge one.
        largest = jnp.max(jnp.abs(x), axis=-1)
        scale = jnp.where(largest == 0, 1.0, largest)
        return scale * jnp.sqrt(jnp.sum(jnp.square(x / scale[..., None]), axis=-1))

    def squares(g):
        if isinstance(g, OuterProducts):
            return jnp.square(norm(_wide(g.left)) * norm(_wide(g.right)))
        if isinstance(g, ColumnProducts):
            # |l_n r_n|^2 = |l_n|^2 r_n^2, added up over the columns.
            return jnp.square(norm(norm(_wide(g.left)) * _wide(g.right)))
        return jnp.sum(jnp.square(_wide(g)), axis=tuple(range(1, g.ndim)))

    return jnp.sqrt(sum(squares(g) for g in jax.tree.leaves(gradients, is_leaf=_is_product)))


def sum_clipped(
    gradients: Any, l2_clip_norm: float | jax.Array, is_padding: jax.Array
) -> tuple[Any, jax.Array]:
    """Clips each report's gradient to `l2_clip_norm` and adds them up.

    Guarantee: adding or removing one report changes the sum by a vector of L2 norm at most
    `l2_clip_norm` over all leaves together, and the report's values cannot influence how any other
    report is clipped (Abadi et al., 2016, with one global norm). In exact arithmetic: float32
    rounding adds a relative 1e-6 or so to a clipped norm, and to the sum of B reports at most
    B^2 * 6e-8 * C, typically sqrt(B) * 6e-8 * C; the accounting does not count it.

    =============================  ====================================================
    A report whose                 contributes
    =============================  ====================================================
    norm <= l2_clip_norm           its gradient, unchanged
    norm > l2_clip_norm            its gradient scaled to norm l2_clip_norm
    norm = 0                       zero
    norm is not finite             zero (any NaN or infinity, or a norm that overflows)
    is_padding is true             zero, whatever its values
    =============================  ====================================================

    Args:
        gradients: tree with leaves [B, ...], `OuterProducts` or `ColumnProducts`, one row per
            report; B may be 0.
        l2_clip_norm: C > 0 (within `mechanism.CLIP_NORM_RANGE` for the guarantee); infinity means
            no clipping (non-finite and padding rules still hold).
        is_padding: [B] bool, rows that stand for no report.

    Returns:
        (sum, norms): the tree without the leading axis, in float32 or wider, and the norms [B]
        before clipping, 0 where the row was dropped.

    Raises:
        AssertionError: while tracing, if the leaves and `is_padding` differ in B, which would
            broadcast one report over others, or `is_padding` is not boolean.
    """
    chex.assert_type(is_padding, bool)
    chex.assert_rank(is_padding, 1)
    chex.assert_equal_shape_prefix([is_padding, *jax.tree.leaves(gradients)], 1)
    norms = per_report_norms(gradients)
    counts = jnp.isfinite(norms) & ~is_padding
    norms = jnp.where(counts, norms, 0.0)
    # A norm of 0 gives 1 (its gradient is zero); no stability constant, so nothing is over-clipped.
    factors = jnp.where(norms > l2_clip_norm, l2_clip_norm / norms, 1.0)

    def by_row(x, like):
        return x.reshape((-1,) + (1,) * (like.ndim - 1))

    def reduce(g):
        if _is_product(g):
            left, right = (jnp.where(by_row(counts, x), _wide(x), 0.0) for x in g)
            scaled = right * factors[:, None]
            if isinstance(g, OuterProducts):
                # sum_i factor_i * outer(left_i, right_i) is a matrix product.
                return jnp.matmul(left.T, scaled, precision=jax.lax.Precision.HIGHEST)
            return jnp.sum(left * scaled[..., None], axis=0).T
        # Select before scaling: 0 * nan is nan. The factors make products and sum float32 or wider.
        g = jnp.where(by_row(counts, g), g, 0.0) * by_row(factors, g)
        # An elementwise product and a sum: a matmul may round to bf16 or tf32 on accelerators.
        return jnp.sum(g, axis=0)

    return jax.tree.map(reduce, gradients, is_leaf=_is_product), norms


def clipped_gradient_sum(
    loss_fn: Callable[..., jax.Array],
    l2_clip_norm: float | jax.Array,
    value_and_grad: Callable[..., Callable] = jax.value_and_grad,
) -> Callable[..., tuple[Any, ClipDiagnostics]]:
    """Turns a loss of one report into the clipped gradient sum of a batch of reports.

    Args:
        loss_fn: (params, *report) -> scalar loss of ONE report; it sees no other report.
        l2_clip_norm: see `sum_clipped`, whose guarantee and edge cases hold here.
        value_and_grad: loss_fn -> f(params, *report) -> (loss, gradient like params); another one
            may give leaves as `OuterProducts` or `ColumnProducts`, of the same values. Or those of
            K reports that come together, each as if alone: losses [K], leaves [K, ...].

    Returns:
        f(params, *batch, is_padding=) -> (sum like params, `ClipDiagnostics`), where every array in
        `batch` has a leading axis [B], or [B / K] if K reports come together.
    """

    def clipped_sum(params, *batch, is_padding):
        per_report = jax.vmap(value_and_grad(loss_fn), in_axes=(None,) + (0,) * len(batch))
        losses, gradients = per_report(params, *batch)
        if losses.ndim > 1:
            losses, gradients = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), (losses, gradients)
            )
        total, norms = sum_clipped(gradients, l2_clip_norm, is_padding)
        return total, ClipDiagnostics(jnp.where(is_padding, 0.0, losses), norms)

    return clipped_sum


def clip_and_sum(l2_clip_norm: float) -> optax.GradientTransformation:
    """`sum_clipped` as an optax transform: updates with leaves [B, ...] -> their clipped sum.

    First half of `noise.dp_aggregate`; the guarantee is that of `sum_clipped` without padding.
    """

    def update(updates, state, params=None):
        del params
        rows = jax.tree.leaves(updates)[0].shape[0]
        total, _ = sum_clipped(updates, l2_clip_norm, jnp.zeros(rows, bool))
        return total, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
