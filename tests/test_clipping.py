# SPDX-License-Identifier: Apache-2.0
"""Clipping against a slow loop, against jax_privacy, and line by line of `sum_clipped`'s table."""

import jax
import jax.numpy as jnp
import jax_privacy
import numpy as np
import optax
import pytest

from jaxdp.dp.clipping import (
    OuterProducts,
    clip_and_sum,
    clipped_gradient_sum,
    per_report_norms,
    sum_clipped,
)

CLIP = 9.0


def tiny_network(seed: int = 0, reports: int = 13):
    """(loss of one report, params, batch) of a two-layer network with very unequal gradients."""
    rng = np.random.default_rng(seed)
    params = {
        "a": {"kernel": rng.normal(size=(5, 4)), "bias": rng.normal(size=4)},
        "b": rng.normal(size=(4, 3)),
        "scale": np.array(1.5),
    }
    x = rng.normal(size=(reports, 5)) * np.geomspace(1e-3, 30, reports)[:, None]
    y = rng.normal(size=(reports, 3))

    def loss(params, x, y):
        hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
        return jnp.sum((params["scale"] * (hidden @ params["b"]) - y) ** 2)

    return loss, params, (x, y)


def slow_clipped_sum(loss, params, batch, clip: float):
    """One report at a time, in Python: (sum of clipped gradients, norms before clipping)."""
    total = [np.zeros(np.shape(p)) for p in jax.tree.leaves(params)]
    norms = []
    for report in zip(*batch, strict=True):
        gradient = [np.asarray(g) for g in jax.tree.leaves(jax.grad(loss)(params, *report))]
        norm = np.sqrt(sum((g**2).sum() for g in gradient))
        norms.append(norm)
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / norm)
    return jax.tree.unflatten(jax.tree.structure(params), total), np.array(norms)


def assert_close(ours, theirs, rtol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def test_equals_the_per_report_loop_in_float64():
    with jax.enable_x64(True):
        loss, params, batch = tiny_network()
        total, diagnostics = clipped_gradient_sum(loss, CLIP)(
            params, *batch, is_padding=jnp.zeros(13, bool)
        )
        expected, norms = slow_clipped_sum(loss, params, batch, CLIP)
        assert (norms > CLIP).any() and (norms < CLIP).any(), "the test must see both branches"
        assert_close(total, expected, 1e-9)
        np.testing.assert_allclose(diagnostics.norm, norms, rtol=1e-9)
        losses = [loss(params, *report) for report in zip(*batch, strict=True)]
        np.testing.assert_allclose(diagnostics.loss, losses, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:optax.global_norm is deprecated:DeprecationWarning")
def test_equals_jax_privacy_in_float64():
    with jax.enable_x64(True):
        loss, params, batch = tiny_network(1)
        padding = jnp.arange(13) % 4 == 3
        total, _ = clipped_gradient_sum(loss, CLIP)(params, *batch, is_padding=padding)
        theirs = jax_privacy.clipped_grad(
            loss, l2_clip_norm=CLIP, batch_argnums=(1, 2), keep_batch_dim=False
        )
        assert_close(total, theirs(params, *batch, is_padding_example=padding), 1e-9)


def test_without_clipping_it_is_the_gradient_of_the_summed_loss():
    with jax.enable_x64(True):
        loss, params, batch = tiny_network(2)
        total, _ = clipped_gradient_sum(loss, np.inf)(
            params, *batch, is_padding=jnp.zeros(13, bool)
        )
        whole = jax.grad(lambda p: jax.vmap(loss, (None, 0, 0))(p, *batch).sum())(params)
        assert_close(total, whole, 1e-9)


def rows(*values):
    """[B, 2] float32 over two leaves of one coordinate each."""
    g = jnp.asarray(values, jnp.float32)
    return {"x": g[:, :1], "y": g[:, 1]}


@pytest.mark.parametrize(
    ("row", "contribution", "norm"),
    [
        ((0.3, 0.4), (0.3, 0.4), 0.5),  # below C: unchanged, to the last bit
        ((0.6, 0.8), (0.6, 0.8), 1.0),  # exactly C
        ((3.0, 4.0), (0.6, 0.8), 5.0),  # above C: one factor for both leaves
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((1e-30, 0.0), (1e-30, 0.0), 0.0),  # a norm that underflows is far below any C allowed
        ((np.nan, 0.1), (0.0, 0.0), 0.0),
        ((np.inf, 0.1), (0.0, 0.0), 0.0),
        ((-np.inf, np.nan), (0.0, 0.0), 0.0),
        ((3e38, 0.1), (0.0, 0.0), 0.0),  # its square overflows float32
        ((1e19, 0.0), (1.0, 0.0), 1e19),  # the largest that does not
    ],
)
def test_edge_table(row, contribution, norm):
    neighbour = (0.5, -0.25)
    total, norms = sum_clipped(rows(row, neighbour), 1.0, jnp.zeros(2, bool))
    expected = np.float32(contribution) + np.float32(neighbour)
    np.testing.assert_allclose([total["x"][0], total["y"]], expected, rtol=2e-7)
    np.testing.assert_allclose(norms[0], np.float32(norm), rtol=2e-7)


@pytest.mark.parametrize("value", [1.0, 1e6, np.nan, np.inf])
def test_padding_contributes_nothing_whatever_it_holds(value):
    total, norms = sum_clipped(rows((value, value), (0.3, 0.4)), 1.0, jnp.array([True, False]))
    assert (float(total["x"][0]), float(total["y"])) == (np.float32(0.3), np.float32(0.4))
    np.testing.assert_array_equal(norms, np.float32([0, 0.5]))


def test_no_reports_at_all():
    empty = {"x": jnp.zeros((0, 3, 2)), "y": jnp.zeros(0)}
    total, norms = sum_clipped(empty, 1.0, jnp.zeros(0, bool))
    np.testing.assert_array_equal(total["x"], np.zeros((3, 2)))
    assert total["y"].shape == () and total["y"] == 0 and norms.shape == (0,)


def test_sensitivity_is_the_clip_norm_over_all_leaves_together():
    """Removing any one report changes the sum by at most C: over all leaves, not over each."""
    rng = np.random.default_rng(3)
    gradients = {"x": rng.normal(size=(6, 50)) * 9, "y": rng.normal(size=(6, 7, 3)) * 9}
    gradients = jax.tree.map(jnp.float32, gradients)
    whole, _ = sum_clipped(gradients, CLIP, jnp.zeros(6, bool))
    for i in range(6):
        rest, _ = sum_clipped(gradients, CLIP, jnp.arange(6) == i)
        change = jax.tree.map(jnp.subtract, whole, rest)
        norm = np.sqrt(sum(float((d**2).sum()) for d in jax.tree.leaves(change)))
        # All rows are above C, so the bound is met with equality, up to float32.
        assert norm == pytest.approx(CLIP, rel=1e-5)


def test_no_report_influences_how_another_is_clipped():
    gradients = rows((0.3, 0.4), (3.0, 4.0))
    alone, _ = sum_clipped(gradients, 1.0, jnp.array([False, True]))
    for other in [(1e18, 1e18), (np.nan, 0.0), (0.0, 0.0)]:
        both, _ = sum_clipped(rows((0.3, 0.4), other), 1.0, jnp.zeros(2, bool))
        only, _ = sum_clipped(rows(other), 1.0, jnp.zeros(1, bool))
        np.testing.assert_allclose(both["x"] - only["x"], alone["x"], rtol=1e-6)
        np.testing.assert_allclose(both["y"] - only["y"], alone["y"], rtol=1e-6)


def test_a_bad_report_does_not_reach_the_others_through_the_network():
    loss, params, (x, y) = tiny_network(4)
    params = jax.tree.map(jnp.float32, params)
    bad = x.copy()
    bad[5] = np.nan
    clean, _ = clipped_gradient_sum(loss, CLIP)(params, x, y, is_padding=jnp.arange(13) == 5)
    total, diagnostics = clipped_gradient_sum(loss, CLIP)(
        params, bad, y, is_padding=jnp.zeros(13, bool)
    )
    assert_close(total, clean, 1e-6)
    assert diagnostics.norm[5] == 0 and np.isnan(diagnostics.loss[5])


def test_half_precision_gradients_are_measured_and_summed_in_float32():
    gradients = {"x": jnp.full((3000, 1), 0.01, jnp.bfloat16)}
    total, norms = sum_clipped(gradients, 1.0, jnp.zeros(3000, bool))
    assert total["x"].dtype == norms.dtype == jnp.float32
    # bfloat16 has 8 bits: a sum kept in it stops growing near 256 * 0.01.
    np.testing.assert_allclose(total["x"], 3000 * float(jnp.bfloat16(0.01)), rtol=1e-5)


def test_norm_of_a_long_leaf_is_not_underestimated():
    """A running float32 sum of equal squares would stop growing; the norm would pass the clip."""
    length = 2**25
    norm = per_report_norms({"x": jnp.ones((1, length), jnp.float32)})
    np.testing.assert_allclose(norm, np.sqrt(length), rtol=1e-5)


@pytest.mark.parametrize(
    ("gradients", "is_padding"),
    [
        (rows((1, 1), (2, 2)), jnp.zeros(1, bool)),
        (rows((1, 1), (2, 2)), jnp.zeros((2, 1), bool)),
        (rows((1, 1), (2, 2)), jnp.zeros(2, jnp.int32)),
        ({"x": jnp.ones((2, 3)), "y": jnp.ones((1, 3))}, jnp.zeros(2, bool)),
    ],
    ids=["short mask", "mask with a column", "mask of numbers", "leaf that would broadcast"],
)
def test_shapes_that_would_broadcast_are_refused(gradients, is_padding):
    with pytest.raises(AssertionError):
        sum_clipped(gradients, 1.0, is_padding)


def test_optax_transform_is_the_same_sum():
    gradients = rows((0.3, 0.4), (3.0, 4.0), (np.nan, 1.0))
    transform = clip_and_sum(1.0)
    total, state = transform.update(gradients, transform.init(None))
    expected, _ = sum_clipped(gradients, 1.0, jnp.zeros(3, bool))
    assert state == optax.EmptyState()
    jax.tree.map(np.testing.assert_array_equal, total, expected)


def formed(gradients):
    """The same tree with every outer product as an array."""
    return jax.tree.map(
        lambda g: jnp.einsum("bm,bn->bmn", *g) if isinstance(g, OuterProducts) else g,
        gradients,
        is_leaf=lambda g: isinstance(g, OuterProducts),
    )


def test_outer_products_are_clipped_as_if_they_were_formed():
    with jax.enable_x64(True):
        rng = np.random.default_rng(5)
        left = rng.normal(size=(9, 6)) * np.geomspace(1e-3, 30, 9)[:, None]
        right = rng.normal(size=(9, 4))
        right[4] = 0
        gradients = {"kernel": OuterProducts(left, right), "bias": right, "other": left}
        gradients = jax.tree.map(jnp.asarray, gradients)
        padding = jnp.arange(9) == 7
        total, norms = sum_clipped(gradients, CLIP, padding)
        expected, expected_norms = sum_clipped(formed(gradients), CLIP, padding)
        assert (norms > CLIP).any() and ((norms > 0) & (norms < CLIP)).any()
        assert_close(total, expected, 1e-12)
        np.testing.assert_allclose(norms, expected_norms, rtol=1e-12)


@pytest.mark.parametrize(
    ("left", "right", "contribution"),
    [
        ((3.0, 4.0), (1.0, 0.0), (0.6, 0.8)),
        ((1e-25, 0.0), (1e28, 0.0), (1.0, 0.0)),  # neither vanishes nor overflows when squared
        ((1e25, 0.0), (1e-25, 0.0), (1.0, 0.0)),
        ((0.0, 0.0), (1.0, 1.0), (0.0, 0.0)),
        ((np.nan, 1.0), (0.0, 0.0), (0.0, 0.0)),
        ((1.0, 1.0), (np.inf, 0.0), (0.0, 0.0)),
        ((np.inf, 0.0), (0.0, 0.0), (0.0, 0.0)),
        ((1e30, 0.0), (1e30, 0.0), (0.0, 0.0)),
    ],
)
def test_edge_table_of_outer_products(left, right, contribution):
    neighbour = ((0.5, -0.25), (1.0, 0.0))
    rows = (jnp.float32([mine, its]) for mine, its in zip((left, right), neighbour, strict=True))
    total, _ = sum_clipped(OuterProducts(*rows), 1.0, jnp.zeros(2, bool))
    expected = np.float32(contribution) + np.float32(neighbour[0])
    np.testing.assert_allclose(total[:, 0], expected, rtol=3e-7)


def test_half_precision_outer_products_are_summed_in_float32():
    ones = jnp.full((3000, 1), 0.1, jnp.bfloat16)
    total, norms = sum_clipped(OuterProducts(ones, ones), 1.0, jnp.zeros(3000, bool))
    assert total.dtype == norms.dtype == jnp.float32
    np.testing.assert_allclose(total, 3000 * float(jnp.bfloat16(0.1)) ** 2, rtol=1e-5)


def test_no_product_may_be_rounded_to_half_precision_by_an_accelerator():
    gradients = {"kernel": OuterProducts(jnp.ones((4, 3)), jnp.ones((4, 2))), "x": jnp.ones((4, 5))}
    trace = jax.make_jaxpr(sum_clipped)(gradients, CLIP, jnp.zeros(4, bool))
    products = [e.params for e in trace.jaxpr.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 1  # of the outer products; other leaves are summed without any
    assert products[0]["precision"] == (jax.lax.Precision.HIGHEST,) * 2
