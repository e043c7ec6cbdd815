# SPDX-License-Identifier: Apache-2.0
"""Frozen layers give what the whole model gives; their mean is released with the right noise."""

from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax import nnx
from helpers_data import make_dataset
from helpers_training import write_backbone
from scipy import stats

from jaxdp import dp
from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.units import PrivacyUnits
from jaxdp.evaluation.inference import Predictor, in_batches
from jaxdp.models.lora import add_lora
from jaxdp.models.pretrained import load_classifier
from jaxdp.models.readers import join, own_of
from jaxdp.training import frozen_layers as frozen_layers_module
from jaxdp.training.frozen_layers import FrozenLayers, mean_feature
from jaxdp.training.randomness import RunSecret

LENGTHS = np.array([9, 1, 16, 4, 8, 1, 16, 4, 9, 8])
BUCKETS = Buckets((16, 8), (2, 4))


@pytest.fixture
def model(workspace):
    return load_classifier(workspace / "backbone", 3, "mean", rngs=nnx.Rngs(0))[0]


@pytest.fixture
def tokens():
    ids = np.random.default_rng(0).integers(5, 19, LENGTHS.sum()).astype(np.int32)
    return Packed.from_lengths(ids, LENGTHS)


@nnx.jit  # compiled once for all models of one kind
def alone(model, row):
    return jax.nn.sigmoid(model(row, row.size))


def one_by_one(model, tokens):
    """Probabilities of each report alone, without padding: slow and obvious."""
    rows = [
        tokens.values[start : start + n]
        for start, n in zip(tokens.offsets, tokens.lengths, strict=True)
    ]
    return np.stack([np.asarray(alone(model, row)) for row in rows])


def test_every_report_is_seen_once_and_in_place(tokens):
    seen = np.zeros(len(tokens), int)
    for rows, lengths, output in in_batches(lambda v, n: v[:, :1] * 1, tokens, BUCKETS):
        real = rows >= 0
        assert (lengths[~real] == 0).all()
        rows, lengths, output = rows[real], lengths[real], output[real]
        seen[rows] += 1
        assert (lengths == LENGTHS[rows]).all()
        assert (output[:, 0] == tokens.values[tokens.offsets[rows]]).all()
    assert (seen == 1).all()


@pytest.mark.parametrize("start, level", [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (1, 3)])
def test_prediction_from_any_cached_level_equals_one_report_at_a_time(model, tokens, start, level):
    cached = FrozenLayers(model, {"train": tokens}, BUCKETS).at(start)
    cached = FrozenLayers(model, cached, BUCKETS, level=start).at(level)["train"]
    buckets = Buckets((1,), (4,)) if level == model.feature_level else BUCKETS
    graphdef, adapters, frozen = nnx.split(model, nnx.PathContains("classifier"), ...)
    found = Predictor(graphdef, level, buckets)(adapters, frozen, cached)
    # float32; padding and batching change the order of sums
    np.testing.assert_allclose(found, one_by_one(model, tokens), atol=2e-6)


def test_centre_is_the_same_as_a_shifted_bias(model, tokens):
    graphdef, adapters, frozen = nnx.split(model, nnx.PathContains("classifier"), ...)
    centre = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    centred = Predictor(graphdef, 0, BUCKETS)(adapters, frozen, tokens, centre)
    model.classifier.bias[...] -= centre @ model.classifier.kernel[...]
    np.testing.assert_allclose(centred, one_by_one(model, tokens), atol=5e-6)


def test_frozen_layers_keeps_what_it_has_computed(model, tokens):
    frozen_layers = FrozenLayers(model, {"train": tokens, "validation": tokens}, BUCKETS)
    assert frozen_layers.at(3) is frozen_layers.at(3)
    assert frozen_layers.at(3)["train"].values.shape == (10, 16)
    assert frozen_layers.at(1)["train"].values.shape == (LENGTHS.sum(), 16)


def test_who_watches_is_told_of_every_report_once(model, tokens, tmp_path):
    told = []

    @contextmanager
    def watch(total):
        told.append([total])
        yield told[-1].append

    splits = {"train": tokens, "validation": tokens}
    for _ in range(2):
        FrozenLayers(model, splits, BUCKETS, tmp_path, watch=watch).at(3)
    ((total, *counts),) = told  # all but the first split of the first time is found in the folder
    assert total == sum(counts) == len(tokens) and len(counts) > 1


def folder_run(model, tokens, folder, level=3, buckets=BUCKETS):
    frozen_layers = FrozenLayers(model, {"train": tokens}, buckets, folder / "kept")
    return frozen_layers.at(level)["train"]


def test_kept_levels_are_those_that_were_computed_and_are_read_back(model, tokens, tmp_path):
    plain = FrozenLayers(model, {"train": tokens}, BUCKETS).at(1)["train"]
    first = folder_run(model, tokens, tmp_path, level=1)
    again = folder_run(model, tokens, tmp_path, level=1)
    for found in (first, again):
        assert isinstance(found.values, np.memmap)
        np.testing.assert_array_equal(found.values, plain.values)
        np.testing.assert_array_equal(found.lengths, plain.lengths)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_new_adapters_and_another_head_find_the_kept_levels(workspace, model, tokens, tmp_path):
    folder_run(model, tokens, tmp_path)
    for seed in (1, 2):
        other = load_classifier(workspace / "backbone", 3, "mean", rngs=nnx.Rngs(seed))[0]
        add_lora(other, rank=2, alpha=4, targets=["query"], rngs=nnx.Rngs(seed))
        folder_run(other, tokens, tmp_path)
    # one for the plain layers, one for those with adapters, whatever the adapters' start
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_adapters_that_have_learnt_change_the_levels_above_them_alone(tokens, tmp_path):
    backbone = write_backbone(tmp_path / "learner")

    def adapted(b, level):
        model = load_classifier(backbone, 3, "mean", rngs=nnx.Rngs(0))[0]
        add_lora(model, rank=2, alpha=4, targets=["query"], first_layer=1, rngs=nnx.Rngs(0))
        nnx.update(model, jax.tree.map(lambda x: x + b, nnx.state(model, nnx.LoRAParam)))
        return folder_run(model, tokens, tmp_path, level).values

    fresh, learnt = (adapted(b, 3) for b in (0.0, 0.5))
    assert (fresh != learnt).any()
    assert len(list((tmp_path / "kept").iterdir())) == 2
    np.testing.assert_array_equal(adapted(0.0, 1), adapted(0.5, 1))
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_runs_that_differ_in_their_basis_share_the_kept_features(tokens, tmp_path, monkeypatch):
    backbone = write_backbone(tmp_path / "learner")
    monkeypatch.setattr(frozen_layers_module, "_AT_ONCE", 4)  # of ten reports
    rng = np.random.default_rng(0)
    center = rng.standard_normal((3, 32)).astype(np.float32)
    directions = np.linalg.qr(rng.standard_normal((3, 32, 32)))[0].astype(np.float32)
    for count in (None, 32, 2, 5):
        model = load_classifier(backbone, 3, "label-attention", rngs=nnx.Rngs(0))[0]
        queries = np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)
        model.label_attention.queries[...] = queries[0]
        first = own_of(model)
        model.label_attention.queries[...] = queries[1]
        join(model, [first, own_of(model)])
        model.set_basis(center, None if count is None else directions[..., :count])
        found = folder_run(model, tokens, tmp_path)
        plain = FrozenLayers(model, {"train": tokens}, BUCKETS).at(3)["train"]
        assert found.values.shape == plain.values.shape and found.values.dtype == np.float16
        assert (found.lengths == 1).all()
        # Rounded to float16 before, too: numbers of about 4 at most, 32 of them in each sum.
        np.testing.assert_allclose(found.values, plain.values, atol=32**0.5 * 4 * 2**-11)
        assert isinstance(found.values, np.memmap) == (count is None)
        assert len(list((tmp_path / "kept").iterdir())) == 1
    # What other queries and directions read lies below them, and is shared as well.
    states = [folder_run(model, tokens, tmp_path, 1)]
    model.label_attention.queries[...] += 1
    model.fold_basis()
    states.append(folder_run(model, tokens, tmp_path, 1))
    assert len(list((tmp_path / "kept").iterdir())) == 2
    np.testing.assert_array_equal(*(found.values for found in states))


@pytest.mark.parametrize("change", ["weight", "token", "epsilon", "level", "buckets"])
def test_whatever_changes_a_level_makes_it_anew(model, tokens, tmp_path, change):
    folder_run(model, tokens, tmp_path)
    level, buckets = 3, BUCKETS
    if change == "weight":
        bias = jax.tree.leaves(nnx.state(model.bert, nnx.PathContains("bias")))[0]
        nnx.update(
            model.bert, jax.tree.map(lambda b: b + 1 if b is bias else b, nnx.state(model.bert))
        )
    elif change == "token":
        tokens = Packed.from_lengths(tokens.values ^ 1, tokens.lengths)
    elif change == "epsilon":
        for _, module in nnx.iter_modules(model):
            if isinstance(module, nnx.LayerNorm):
                module.epsilon = 0.1
    elif change == "level":
        level = 2
    else:
        buckets = Buckets((16, 8), (2, 2))
    found = folder_run(model, tokens, tmp_path, level, buckets)
    fresh = FrozenLayers(model, {"train": tokens}, buckets).at(level)["train"]
    np.testing.assert_array_equal(found.values, fresh.values)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def units_and_features(patients=200, width=50):
    dataset = make_dataset(patients=[str(i) for i in range(patients)])
    values = 1 + np.random.default_rng(2).standard_normal((patients, width)).astype(np.float32)
    features = Packed.from_lengths(values, np.ones(patients, np.int32))
    return PrivacyUnits.of(dataset, "report"), features


def release(noise_multiplier, clip_norm, units=200):
    return dp.SubsampledGaussian(units, units, 1, clip_norm, noise_multiplier)


def test_mean_is_exact_without_privacy_and_without_noise():
    units, features = units_and_features()
    secret = RunSecret.create(0)
    exact = features.values.mean(axis=0)
    np.testing.assert_array_equal(mean_feature(features, units, None, secret), exact)
    generous = mean_feature(features, units, release(0.0, 1e3), secret)
    np.testing.assert_allclose(generous, exact, rtol=1e-5)


def test_mean_clips_each_report_and_divides_by_the_configured_number():
    units, features = units_and_features()
    norms = np.linalg.norm(features.values, axis=1, keepdims=True)
    clipped = (features.values * np.minimum(1, 2.0 / norms)).sum(axis=0)
    found = mean_feature(features, units, release(0.0, 2.0, units=190), RunSecret.create(0))
    np.testing.assert_allclose(found, clipped / 190, rtol=1e-5)


def test_noise_of_the_mean_has_its_scale_and_repeats_on_resume():
    units, features = units_and_features(width=200)
    secret = RunSecret.create(0)
    quiet = mean_feature(features, units, release(0.0, 2.0), secret)
    noisy = [
        mean_feature(features, units, release(3.0, 2.0), RunSecret.create(seed))
        for seed in range(10)
    ]
    noise = (np.stack(noisy) - quiet).ravel() * 200 / (3.0 * 2.0)
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    # 2,000 values tell 0.9 and 1.1 sigma apart from 1
    for wrong in (0.9, 1.1):
        assert abs(noise.std() - wrong) > 4 * wrong / np.sqrt(2 * len(noise))
    again = mean_feature(features, units, release(3.0, 2.0), RunSecret.create(0))
    np.testing.assert_array_equal(again, noisy[0])


def unit_mean(patients, mechanism, scale=100.0, **options):
    """The mean feature of reports whose patients are given, times the divisor: the sum."""
    units = PrivacyUnits.of(make_dataset(patients), "patient")
    values = scale * np.random.default_rng(3).standard_normal((len(patients), 50))
    features = Packed.from_lengths(values.astype(np.float32), np.ones(len(patients), np.int32))
    mean = mean_feature(features, units, mechanism, RunSecret.create(0), **options)
    return mean * mechanism.expected_batch_size


def test_a_patient_adds_at_most_the_clip_norm_to_the_mean_however_many_reports():
    others, mechanism = "aaabccd", release(0.0, 2.0, units=5)
    change = unit_mean(others + "eeeeee", mechanism) - unit_mean(others, mechanism)
    # All features are far beyond the clip, so the bound is met.
    assert np.linalg.norm(change) == pytest.approx(2.0, rel=1e-5)


def test_the_mean_is_of_a_poisson_sample_of_the_units():
    units, _ = units_and_features(patients=400)
    features = Packed.from_lengths(np.eye(400, dtype=np.float32), np.ones(400, np.int32))
    quarter = dp.SubsampledGaussian(400, 100, 1, 2.0, 0.0)
    shown = np.count_nonzero(mean_feature(features, units, quarter, RunSecret.create(0)))
    assert abs(shown - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("secure", [False, True])
def test_noise_of_the_mean_is_of_its_own_stream_and_kind(secure):
    mechanism = release(3.0, 2.0, units=4)
    found = unit_mean("abcd", mechanism, scale=0.0, secure_noise=secure) / 4

    def noise(stage):
        one = jax.ShapeDtypeStruct((50,), np.float32)
        transform, draw = RunSecret.create(0).release(mechanism, stage, one, secure=secure)
        return transform.update(np.zeros(50, np.float32), transform.init(one), **draw(0))[0]

    np.testing.assert_allclose(found, noise("feature mean"), rtol=1e-5, atol=1e-6)
    assert all((found != noise(stage)).all() for stage in ("head stage", "main stage"))
