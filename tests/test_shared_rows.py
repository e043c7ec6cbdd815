# SPDX-License-Identifier: Apache-2.0
"""Rows that several reports share, against one report at a time: the slow oracle is vmap."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx
from helpers_models import SIZES

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.evaluation.inference import Predictor
from jaxdp.models import lora
from jaxdp.models.layers import attend
from jaxdp.models.pretrained import MODELS
from jaxdp.training.frozen_layers import FrozenLayers
from jaxdp.training.trainer import gradient_by, report_loss

KINDS = [kind for kind in MODELS if kind != "xlm-roberta"]  # RoBERTa with another tokenizer
POOLINGS = ("cls", "first", "mean", "mean-last2", "label-attention")
LENGTHS = np.array([9, 4, 13, 2, 7, 30, 2, 5, 11, 6], np.int32)  # one row is full: 30 and 2
ROWS = Buckets((32,), (2,), (3,))
ALONE = Buckets((30,), (4,))
TWO = {"num_hidden_layers": 2}
SHALLOW = {"bert": TWO, "albert": TWO | {"num_hidden_groups": 1}}  # a group is used twice
LABELS = np.random.default_rng(1).integers(-1, 2, (len(LENGTHS), 5)).astype(np.int8)


def tokens(seed=0):
    ids = np.random.default_rng(seed).integers(3, 97, LENGTHS.sum())
    return Packed.from_lengths(ids.astype(np.int32), LENGTHS)


def classifier(kind, pooling, dtype=np.float64, products=None):
    """Of a tiny size, with adapters in every linear layer; every number is random."""
    cfg = transformers.AutoConfig.for_model(kind, **SIZES[kind] | SHALLOW.get(kind, {}))
    model = MODELS[kind](cfg, 5, pooling, products, rngs=nnx.Rngs(0))
    lora.add_lora(model, rank=3, alpha=6.0, targets=["all-linear"], rngs=nnx.Rngs(1))
    rng = np.random.default_rng(2)
    state = nnx.state(model, nnx.Param)
    nnx.update(
        model, jax.tree.map(lambda x: jnp.asarray(x + rng.normal(0, 0.1, x.shape), dtype), state)
    )
    return model


def gradient_of(model, mode, buckets, level=0):
    """`gradients` of this model, compiled."""
    graphdef, adapters, frozen = lora.split(model, mode)
    loss = report_loss(graphdef, level)

    def of_report(adapters, *report):
        return loss(adapters, (frozen, 0.0), *report)

    fn = jax.jit(jax.vmap(gradient_by(buckets)(of_report), (None, 0, 0, 0)))
    return partial(gradients, partial(fn, adapters), buckets)


def gradients(fn, buckets, reports):
    """Losses and gradients by report, in the reports' order, through the given shapes."""
    plan = buckets.plan(np.arange(len(reports)), reports.lengths, buckets.capacity(len(reports)))
    found = {}
    for (width, slots, together), start, count in zip(
        buckets.shapes, plan.starts, plan.counts, strict=True
    ):
        for begin in range(start, start + count * slots, slots):
            rows = plan.rows[begin : begin + slots]
            values, lengths = reports.gather(rows, width, together)
            labels = LABELS[np.maximum(rows, 0)].reshape(*lengths.shape, 5)
            made = jax.tree.map(np.asarray, fn(values, lengths, labels))
            if together > 1:
                made = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), made)
            for slot, row in enumerate(rows):
                if row >= 0:
                    found[row] = jax.tree.map(lambda x, slot=slot: x[slot], made)
    return [found[row] for row in range(len(reports))]


def same(found, wanted, **tolerance):
    for ours, theirs in zip(found, wanted, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, theirs)


QUICK = [
    ("bert", "cls"),
    ("albert", "mean"),
    ("roberta", "first"),
    ("mpnet", "label-attention"),
    ("modernbert", "mean-last2"),
]


@pytest.mark.parametrize(
    "kind, pooling",
    [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow)
        for pair in itertools.product(KINDS, POOLINGS)
    ],
)
def test_gradients_of_shared_rows_are_those_of_reports_alone(kind, pooling):
    with jax.enable_x64(True):
        model = classifier(kind, pooling)
        mode = {"label-attention": "lora+queries", "mean": "lora-ffa"}.get(pooling, "lora")
        found = gradient_of(model, mode, ROWS)(tokens())
        wanted = gradient_of(model, mode, ALONE)(tokens())
        same(found, wanted, rtol=1e-9, atol=1e-12)
        # nothing of it is zero by mistake
        assert all(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(wanted[0]))


def test_in_half_precision_they_differ_by_rounding():
    model = classifier("bert", "cls", np.float32, jnp.bfloat16)
    found = gradient_of(model, "lora", ROWS)(tokens())
    wanted = gradient_of(model, "lora", ALONE)(tokens())
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (ours, theirs))
        # 2^-8 for each of some 20 roundings on the way, which add up like independent ones
        assert np.linalg.norm(a - b) < 20**0.5 * 2**-8 * np.linalg.norm(b)


@pytest.mark.parametrize("kind, pooling", QUICK)
def test_no_number_of_a_report_reaches_its_neighbours(kind, pooling):
    model = classifier(kind, pooling, np.float32)
    mode = "lora+queries" if pooling == "label-attention" else "lora"
    states = np.random.default_rng(0).normal(size=(LENGTHS.sum(), 32)).astype(np.float32)
    reports = Packed.from_lengths(states, LENGTHS)
    gradient = gradient_of(model, mode, ROWS, level=1)
    before = gradient(reports)
    graphdef, adapters, frozen = lora.split(model, mode)
    predict = [Predictor(graphdef, 1, buckets) for buckets in (ROWS, ALONE)]
    for value in (1e16, 1e25, 3e38, np.inf, np.nan):
        states[reports.offsets[4] + 3 :][:2, ::5] = value
        for row, (ours, theirs) in enumerate(zip(gradient(reports), before, strict=True)):
            if row != 4:  # to the bit
                jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        # Nor is anything of it hidden: what is not a number by itself, is none in a row.
        shared, alone = (np.isnan(of(adapters, frozen, reports)) for of in predict)
        assert not (alone & ~shared).any() and not np.delete(shared, 4, axis=0).any()
    assert alone[4].any()


@pytest.mark.parametrize(
    "kind, pooling",
    [("bert", "cls"), pytest.param("mpnet", "label-attention", marks=pytest.mark.slow)],
)
def test_every_level_is_that_of_reports_alone(kind, pooling):
    model = classifier(kind, pooling, np.float32)
    graphdef, adapters, frozen = lora.split(model, "lora")

    @cache
    def alone_at(level):
        return FrozenLayers(model, {"train": tokens()}, ALONE).at(level)["train"]

    for level in range(model.feature_level + 1):
        known = alone_at(level)
        last = model.depth - 1 if pooling == "label-attention" else model.depth
        for start in range(min(level, last) + 1):
            below = {"train": alone_at(start)}
            found = FrozenLayers(model, below, ROWS, level=start).at(level)["train"]
            np.testing.assert_array_equal(found.lengths, known.lengths)
            # float32, and features of label attention kept in half precision
            atol = 2e-3 if known.values.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(found.values, known.values, atol=atol)
        if level < model.depth:
            shared, alone = (
                Predictor(graphdef, level, buckets)(adapters, frozen, known)
                for buckets in (ROWS, ALONE)
            )
            np.testing.assert_allclose(shared, alone, atol=1e-5)


def spoiled(fn, arrays, cotangent, others, own):
    """The outputs of fn where row `own` of one array after the other is NaN, and then that of the
    cotangent: outputs and gradients at `others`, of another report, must not change by a bit."""
    outputs, back = jax.vjp(fn, *arrays)
    wanted = (outputs, *back(jnp.asarray(cotangent)))
    assert all(np.abs(x[others]).max() > 0 for x in wanted)
    for which in range(len(arrays) + 1):
        bad = [np.array(x) for x in (*arrays, cotangent)]
        bad[which][own] = np.nan
        outputs, back = jax.vjp(fn, *map(jnp.asarray, bad[:-1]))
        found = (outputs, *back(jnp.asarray(bad[-1])))
        for x, y in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(x[others], y[others])
        yield outputs


def test_attention_keeps_reports_apart():
    rng = np.random.default_rng(0)
    *arrays, cotangent = rng.normal(size=(4, 12, 2, 4)).astype(np.float32)
    lengths = jnp.array([5, 4])
    whole = attend(*arrays, lengths)
    for begin, end in ((0, 5), (5, 9)):
        alone = attend(*(x[begin:end] for x in arrays), jnp.int32(end - begin))
        np.testing.assert_allclose(whole[begin:end], alone, atol=1e-6)
    fn = partial(attend, length=lengths)
    *spoilt, _ = spoiled(fn, arrays, cotangent, slice(5, 9), 2)
    # And what is not a number, is none: the query's own output, or that of all that see it.
    assert [np.isnan(x).any(axis=(1, 2)).sum() for x in spoilt] == [1, 5, 5]


def test_an_adapter_keeps_reports_apart():
    rng = np.random.default_rng(0)
    base = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    a, b = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3, 6))
    x, cotangent = (rng.normal(size=(9, n)).astype(np.float32) for n in (4, 6))
    owner = jnp.array([0] * 5 + [1] * 4)

    def fn(x, a, b):
        return lora.LoRALinear(base, a, b, 6.0)(x, owner)

    a, b = (value.astype(np.float32) for value in (a, b))
    for report, rows in enumerate((slice(0, 5), slice(5, 9))):
        alone = lora.LoRALinear(base, a[report], b[report], 6.0)(x[rows])
        np.testing.assert_allclose(fn(x, a, b)[rows], alone, rtol=1e-5, atol=1e-5)
    _, back = jax.vjp(fn, x, a, b)
    wanted = back(jnp.asarray(cotangent))
    for bad_x, bad_cotangent in ((np.nan, 0), (0, np.nan)):
        own = np.arange(9)[:, None] == 2
        _, back = jax.vjp(fn, np.where(own & (bad_x != 0), bad_x, x), a, b)
        found = back(jnp.asarray(np.where(own & (bad_cotangent != 0), bad_cotangent, cotangent)))
        np.testing.assert_array_equal(found[0][5:], wanted[0][5:])
        for ours, theirs in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_array_equal(ours[1], theirs[1])


def test_reports_are_gathered_end_to_end():
    reports = tokens()
    values, lengths = reports.gather(np.array([4, 0, -1, 5, 3, -1]), 32, 3)
    on_device = jax.tree.map(jnp.asarray, reports).gather(jnp.array([4, 0, -1, 5, 3, -1]), 32, 3)
    np.testing.assert_array_equal(values, on_device[0])
    assert lengths.tolist() == on_device[1].tolist() == [[7, 9, 0], [30, 2, 0]]
    for row, together in zip(values, ((4, 0), (5, 3)), strict=True):
        spans = [reports.values[reports.offsets[i] :][: LENGTHS[i]] for i in together]
        whole = np.concatenate(spans)
        np.testing.assert_array_equal(row[: len(whole)], whole)
        assert (row[len(whole) :] == whole[-1]).all()
