# SPDX-License-Identifier: Apache-2.0
"""Activations against SciPy and JAX's own, with their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_xla import AS_USERS_DO
from scipy import special

from jaxdp.models.layers import ACTIVATIONS, softmax, standard_normal_cdf

X = np.concatenate([np.linspace(-12, 12, 24_001), [-1e4, 1e4, 0.0]])


def exact(name):
    """(values, derivatives) at X in float64."""
    if name == "gelu":
        density = np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)
        return X * special.ndtr(X), special.ndtr(X) + X * density
    inner = np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * X**2)
    values = 0.5 * X * (1 + np.tanh(inner))
    return values, 0.5 * (1 + np.tanh(inner)) + 0.5 * X * slope / np.cosh(
        np.clip(inner, -300, 300)
    ) ** 2


# Relative to the value or 1, whichever is larger. float32: some roundings of Phi near 1, 1.2e-7
# each; for the derivative of the other GELU 1 - tanh^2 loses as much, times up to 30. A wrong
# variant of GELU differs by 5e-4.
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("gelu", "float32", 5e-7),
        ("gelu_new", "float32", 5e-6),
        ("gelu", "float64", 1e-13),
        ("gelu_new", "float64", 1e-13),
    ],
)
def test_values_and_derivatives(name, dtype, tolerance):
    with jax.enable_x64(True):
        x = jnp.asarray(X, dtype)
        both = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))
        values, derivatives = jax.jit(both, compiler_options=AS_USERS_DO)(x)
        assert values.dtype == derivatives.dtype == dtype
        for found, wanted in zip((values, derivatives), exact(name), strict=True):
            scale = np.maximum(np.abs(wanted), 1)
            assert np.max(np.abs(found - wanted) / scale) < tolerance


def test_distribution_function_in_float32():
    x = jnp.asarray(X, jnp.float32)
    found = jax.jit(standard_normal_cdf, compiler_options=AS_USERS_DO)(x)
    assert np.max(np.abs(found - special.ndtr(X))) < 3e-7
    assert (found >= 0).all() and (found <= 1).all()


def test_a_gradient_keeps_the_argument_alone():
    _, pullback = jax.vjp(ACTIVATIONS["gelu"], jnp.ones(7))
    assert [leaf.shape for leaf in jax.tree.leaves(pullback)] == [(7,)]


def test_softmax_and_its_gradient():
    x, cotangent = np.random.default_rng(0).normal(size=(2, 5, 9)) * 30
    with jax.enable_x64(True):
        ours, back = jax.vjp(softmax, jnp.asarray(x))
        theirs, their_back = jax.vjp(jax.nn.softmax, jnp.asarray(x))
        np.testing.assert_allclose(ours, special.softmax(x, axis=-1), rtol=1e-14)
        np.testing.assert_allclose(back(cotangent)[0], their_back(cotangent)[0], atol=1e-14)
