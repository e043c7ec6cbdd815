# SPDX-License-Identifier: Apache-2.0
"""Label attention: what each label reads, its coordinates, and its head's gradients, by oracles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers_models import randomise
from transformers import AlbertConfig, BertConfig

from jaxdp import dp
from jaxdp.models import lora
from jaxdp.models.albert import AlbertClassifier
from jaxdp.models.bert import BertClassifier
from jaxdp.models.tasks import multilabel_loss
from jaxdp.training import trainer

SIZES = dict(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
)
LABELS, LENGTH = 5, 9


def classifier(pooling="label-attention", kind=BertClassifier):
    config = {BertClassifier: BertConfig, AlbertClassifier: partial(AlbertConfig, embedding_size=8)}
    return kind(config[kind](**SIZES), LABELS, pooling, rngs=nnx.Rngs(0))


@pytest.fixture(params=[BertClassifier, AlbertClassifier])
def model(request):
    model = classifier(kind=request.param)
    randomise(model, "head+queries", noise=1.0)
    return model


IDS = jnp.arange(12) % 7


def by_hand(model, ids, length):
    """Features [labels, H] and logits, token by token, in float64."""
    states = [np.asarray(model.advance(ids, length, 0, k), np.float64) for k in (2, 3)]
    h = (states[0] + states[1]) / 2
    q, w = (np.asarray(x, np.float64) for x in (
        model.label_attention.queries[...], model.classifier.kernel[...].T))  # fmt: skip
    features = np.zeros_like(q)
    for label in range(LABELS):
        weights = np.array([np.exp(q[label] @ h[t]) for t in range(length)])
        for t in range(length):
            features[label] += weights[t] / weights.sum() * h[t]
    return features, (features * w).sum(axis=1) + np.asarray(model.classifier.bias[...])


def test_every_label_reads_its_own_tokens(model):
    features, logits = by_hand(model, IDS, LENGTH)
    found = model.advance(IDS, LENGTH, 0, model.feature_level)
    np.testing.assert_allclose(found, features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model(IDS, LENGTH), logits, rtol=1e-5, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 0.01  # labels do read differently
    weights = model.label_attention.weights(jnp.ones((12, 16)), jnp.arange(12) < LENGTH)
    np.testing.assert_allclose(weights[:, :LENGTH], 1 / LENGTH, rtol=1e-6)
    assert not weights[:, LENGTH:].any()


def test_padding_is_not_read_and_an_empty_row_is_finite(model):
    other = IDS.at[LENGTH:].set(1)
    np.testing.assert_array_equal(model(IDS, LENGTH), model(other, LENGTH))
    assert np.isfinite(model(IDS, 0)).all()


def test_without_queries_every_label_reads_the_mean():
    ours, mean = classifier(), classifier("mean-last2")
    nnx.update(ours, nnx.state(mean))  # all but the queries, which are zero
    np.testing.assert_allclose(ours(IDS, LENGTH), mean(IDS, LENGTH), rtol=1e-5, atol=1e-6)


def test_any_level_leads_to_the_same_and_queries_start_below_the_last_layer(model):
    whole = model(IDS, LENGTH)
    assert model.start_level(lora.split(model, "head+queries")[1]) == model.depth - 1
    assert model.start_level(lora.split(model, "head")[1]) == model.feature_level
    for level in (1, model.depth - 1, model.feature_level):
        states = model.advance(IDS, LENGTH, 0, level)
        np.testing.assert_allclose(model(states, LENGTH, level), whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="label-attention starts at level 2"):
        model.advance(model.advance(IDS, LENGTH, 0, 3), LENGTH, 3, 4)


def test_queries_are_trained_where_the_mode_says_so_and_a_basis_never(model):
    model.set_basis(jnp.zeros((LABELS, 16)))
    for mode, trained in (("head", False), ("head+queries", True), ("full", True)):
        names = {path[-1] for path, _ in nnx.to_flat_state(lora.split(model, mode)[1])}
        assert ("queries" in names) == trained and "center" not in names
    with pytest.raises(ValueError, match="train.mode must be one of"):
        lora.split(model, "head+keys")


@pytest.mark.parametrize("pooling", ["label-attention", "mean-last2"])
def test_a_basis_changes_coordinates_and_nothing_else(pooling):
    model = classifier(pooling)
    randomise(model, "head+queries", noise=1.0)
    before, kernel = model(IDS, LENGTH), model.classifier.kernel[...]
    rng = np.random.default_rng(0)
    by_label = pooling == "label-attention"
    center = jnp.asarray(rng.standard_normal((LABELS, 16) if by_label else 16), jnp.float32)
    directions = None
    if by_label:  # four directions for each label, its own head among them
        columns = np.concatenate(
            [kernel.T[:, :, None], rng.standard_normal((LABELS, 16, 3))], axis=2
        )
        directions = jnp.asarray(np.linalg.qr(columns)[0], jnp.float32)
    feature = model.advance(IDS, LENGTH, 0, model.feature_level)
    model.set_basis(center, directions)
    moved = model.advance(IDS, LENGTH, 0, model.feature_level)
    expected = feature - center
    if by_label:
        expected = np.einsum("nhk,nh->nk", directions, expected)
        assert model.classifier.kernel.shape == (4, LABELS)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(IDS, LENGTH), before, rtol=1e-4, atol=1e-4)
    model.fold_basis()
    assert model.basis is None
    np.testing.assert_allclose(model.classifier.kernel[...], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(IDS, LENGTH), before, rtol=1e-4, atol=1e-4)
    model.fold_basis()  # nothing left to do


@pytest.mark.parametrize("pooling", ["label-attention", "mean-last2"])
def test_a_temperature_divides_all_logits(pooling):
    model = classifier(pooling)
    randomise(model, "head+queries", noise=1.0)
    before = model(IDS, LENGTH)
    model.divide_logits(2.0)
    np.testing.assert_array_equal(model(IDS, LENGTH), before / 2)
    model.divide_logits(1.0)
    np.testing.assert_array_equal(model(IDS, LENGTH), before / 2)


def test_column_products_are_the_gradients_of_the_label_head(model):
    """Norms and clipped sums as of the gradients themselves, report by report."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((6, LABELS, 16)) * rng.gamma(1, 1, (6, 1, 1)))
    right = jnp.asarray(rng.standard_normal((6, LABELS)))
    formed = jnp.stack([f.T * r for f, r in zip(features, right, strict=True)])
    padding = jnp.asarray([False] * 5 + [True])
    products = {"kernel": dp.ColumnProducts(features, right), "bias": right}
    plain = {"kernel": formed, "bias": right}
    clip = float(np.median(dp.clipping.per_report_norms(plain)))
    for norm in (clip, jnp.inf):
        found, norms = dp.clipping.sum_clipped(products, norm, padding)
        wanted, wanted_norms = dp.clipping.sum_clipped(plain, norm, padding)
        np.testing.assert_allclose(norms, wanted_norms, rtol=1e-6)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    assert 0 < (wanted_norms > clip).sum() < 5
    # One bad label of one report, and that report alone is left out.
    bad = products | {"kernel": dp.ColumnProducts(features.at[0, 2, 3].set(jnp.nan), right)}
    found, norms = dp.clipping.sum_clipped(bad, clip, padding)
    wanted, _ = dp.clipping.sum_clipped(plain, clip, padding.at[0].set(True))
    assert norms[0] == 0
    np.testing.assert_allclose(found["kernel"], wanted["kernel"], rtol=1e-5, atol=1e-6)
    # In half precision they are measured and summed in float32.
    half = {"kernel": dp.ColumnProducts(features.astype(jnp.float16), right)}
    found, _ = dp.clipping.sum_clipped(half, clip, padding)
    assert found["kernel"].dtype == jnp.float32


def test_a_tiny_column_counts_beside_a_huge_one():
    left = jnp.asarray([[[1e-25, 0.0], [1e25, 0.0]]])
    right = jnp.asarray([[1e20, 1e-20]])
    norm = dp.clipping.per_report_norms({"kernel": dp.ColumnProducts(left, right)})
    np.testing.assert_allclose(norm, [1e5], rtol=1e-6)


def test_a_label_heads_gradient_is_its_products(model):
    """What a stage on cached features clips, beside the gradient of the whole head."""
    head = nnx.state(model.classifier)
    feature = jnp.asarray(np.random.default_rng(0).standard_normal((1, LABELS, 16)), jnp.float32)
    labels = jnp.asarray([1, 0, 1, -1, 0])
    graphdef = nnx.graphdef(model.classifier)

    def loss(head, feature, labels):
        return multilabel_loss(nnx.merge(graphdef, head)(feature[0]), labels)

    value, gradient = jax.value_and_grad(loss)(head, feature, labels)
    found_value, found = trainer._head_value_and_grad(loss)(head, feature, labels)
    assert found_value == value
    np.testing.assert_allclose(found["bias"][...], gradient["bias"][...], rtol=1e-6)
    products = found["kernel"].get_value()
    formed = (products.left * products.right[:, None]).T
    np.testing.assert_allclose(formed, gradient["kernel"][...], rtol=1e-5, atol=1e-7)
