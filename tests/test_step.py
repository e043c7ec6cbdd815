# SPDX-License-Identifier: Apache-2.0
"""The jitted step against a loop over reports that anyone can read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.dp import SubsampledGaussian, add_noise_and_average, clipped_gradient_sum
from jaxdp.models.tasks import multilabel_loss
from jaxdp.training.step import (
    LabelledData,
    TrainState,
    make_share_sum,
    make_train_step,
    plain_gradient_sum,
)
from jaxdp.training.trainer import _row_value_and_grad

REPORTS, VOCABULARY, HIDDEN, LABELS = 23, 50, 6, 3
CLIP = 0.15
MECHANISM = SubsampledGaussian(
    units=100, expected_batch_size=8, steps=5, l2_clip_norm=CLIP, noise_multiplier=2.0
)
RATE = 0.3
CAPACITY = 64
SILENT = MECHANISM.replace(noise_multiplier=0.0)
BUCKETS = Buckets((16, 6), (2, 5))
OTHER_SHAPES = [Buckets((16,), (1,)), Buckets((16,), (7,))]
SHARED = [Buckets((24,), (2,), (4,)), Buckets((24, 7), (1, 3), (2, 3))]


def loss_fn(adapters, frozen, tokens, length, labels):
    """A report's loss: masked mean of frozen embeddings, a tanh layer, a head."""
    mask = jnp.arange(tokens.shape[0]) < length
    mean = jnp.sum(frozen[tokens] * mask[:, None], axis=0) / jnp.maximum(length, 1)
    logits = jnp.tanh(mean @ adapters["inner"]) @ adapters["head"] + adapters["bias"]
    return multilabel_loss(logits, labels)


def row_loss(adapters, frozen, tokens, lengths, labels):
    """`loss_fn` of each report of a row, with its own adapters."""

    def of_report(adapters, start, length, labels):
        return loss_fn(adapters, frozen, jnp.roll(tokens, -start), length, labels)

    return jax.vmap(of_report)(adapters, jnp.cumsum(lengths) - lengths, lengths, labels)


def problem():
    """(adapters, frozen, data) in float64; reports of 1 to 16 tokens, some labels unknown."""
    rng = np.random.default_rng(0)
    adapters = {
        "inner": jnp.asarray(rng.normal(size=(HIDDEN, 5))),
        "head": jnp.asarray(rng.normal(size=(5, LABELS))),
        "bias": jnp.zeros(LABELS),
    }
    lengths = rng.integers(1, 17, REPORTS)
    tokens = rng.integers(0, VOCABULARY, lengths.sum()).astype(np.int32)
    labels = rng.integers(-1, 2, (REPORTS, LABELS)).astype(np.int8)
    reports = jax.tree.map(jnp.asarray, Packed.from_lengths(tokens, lengths))
    frozen = jnp.asarray(rng.normal(size=(VOCABULARY, HIDDEN)) * 2)
    return adapters, frozen, LabelledData(reports, jnp.asarray(labels))


def report(data, i):
    """(tokens, length, labels) of one report, padded with another token than the step pads with."""
    start, length = int(data.reports.offsets[i]), int(data.reports.lengths[i])
    tokens = np.full(16, VOCABULARY - 1, np.int32)
    tokens[:length] = data.reports.values[start : start + length]
    return tokens, length, data.labels[i]


one_gradient = jax.jit(jax.value_and_grad(loss_fn))


def optimizer(mechanism=MECHANISM):
    return optax.chain(
        add_noise_and_average(mechanism, jax.random.key(0)), optax.sgd(RATE, momentum=0.9)
    )


@functools.cache
def compiled(buckets, mechanism, gradient_sum, loss=loss_fn):
    """The jitted step; shared between tests, because compiling is what takes time here."""
    return jax.jit(make_train_step(loss, gradient_sum, optimizer(mechanism), buckets))


def run(
    batches, buckets=BUCKETS, mechanism=MECHANISM, gradient_sum=clipped_gradient_sum, loss=loss_fn
):
    """Adapters, last diagnostics and last plan after a step for each batch of report numbers."""
    adapters, frozen, data = problem()
    step = compiled(buckets, mechanism, gradient_sum, loss)
    state = TrainState(adapters, optimizer(mechanism).init(adapters))
    lengths = np.asarray(data.reports.lengths)
    for batch in batches:
        plan = buckets.plan(
            np.asarray(batch, int), lengths, 2 * CAPACITY if buckets.reports else CAPACITY
        )
        state, diagnostics = step(state, frozen, data, plan, CLIP)
    assert step._cache_size() == 1, "every draw must run the same program"
    return state.adapters, diagnostics, plan


def slow_loop(batches, mechanism=MECHANISM, clip=CLIP):
    """The algorithm box, one report and one leaf at a time."""
    adapters, frozen, data = problem()
    release = add_noise_and_average(mechanism, jax.random.key(0))
    noise_state = release.init(adapters)
    silence = jax.tree.map(jnp.zeros_like, adapters)
    velocity = jax.tree.map(np.zeros_like, adapters)
    for batch in batches:
        total = jax.tree.map(lambda a: np.zeros(a.shape), adapters)
        for i in batch:
            _, gradient = one_gradient(adapters, frozen, *report(data, i))
            norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
            factor = clip / norm if norm > clip else 1.0
            for name in total:
                total[name] += np.asarray(gradient[name]) * factor
        noise, noise_state = release.update(silence, noise_state)  # already over expected batch
        for name in total:
            mean = total[name] / mechanism.expected_batch_size + noise[name]
            velocity[name] = 0.9 * velocity[name] + mean
            adapters[name] = adapters[name] - RATE * velocity[name]
    return adapters


def assert_trees_close(ours, theirs, rtol=1e-9):
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, atol=rtol, err_msg=name)


BATCHES = [[3, 1, 4, 15, 9, 2, 6, 5], [20], list(range(REPORTS)), [], [7, 22]]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def expected():
    with jax.enable_x64(True):
        return slow_loop(BATCHES)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("buckets", [BUCKETS, *OTHER_SHAPES], ids=str)
def test_equals_the_loop_over_reports_whatever_the_microbatches(buckets, expected):
    adapters, _, _ = run(BATCHES, buckets)
    assert_trees_close(adapters, expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("buckets", SHARED, ids=str)
def test_equals_that_loop_where_reports_share_rows(buckets, expected):
    gradient_sum = functools.partial(clipped_gradient_sum, value_and_grad=_row_value_and_grad)
    adapters, diagnostics, plan = run(BATCHES, buckets, gradient_sum=gradient_sum, loss=row_loss)
    assert_trees_close(adapters, expected)
    _, wanted, alone = run(BATCHES)
    for found, each in zip(diagnostics, wanted, strict=True):
        by_report = dict(zip(alone.rows.tolist(), each.tolist(), strict=True))
        for row, value in zip(plan.rows.tolist(), found.tolist(), strict=True):
            assert value == pytest.approx(by_report[row] if row >= 0 else 0, rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_clipping_is_at_work_in_that_comparison(expected):
    assert not np.allclose(expected["head"], slow_loop(BATCHES, clip=1e9)["head"], rtol=1e-3)


@pytest.mark.usefixtures("float64")
def test_a_step_without_reports_still_releases_noise():
    adapters, diagnostics, _ = run([[]])
    start, _, _ = problem()
    noise, _ = add_noise_and_average(MECHANISM, jax.random.key(0)).update(
        jax.tree.map(jnp.zeros_like, start), optimizer().init(start)[0]
    )
    for name in start:
        np.testing.assert_allclose(start[name] - adapters[name], RATE * noise[name], rtol=1e-7)
        assert (np.abs(noise[name]) > 0).all()
    assert not np.any(diagnostics.norm) and not np.any(diagnostics.loss)


@pytest.mark.usefixtures("float64")
def test_padding_rows_contribute_nothing():
    """Rows of padding gather report 0; were they counted, more padding would change the result."""
    full, _, _ = run([[5, 7, 11]], Buckets((16,), (1,)))
    padded, _, plan = run([[5, 7, 11]], Buckets((16,), (7,)))
    assert (plan.rows[:7] == -1).sum() == 4 and plan.counts[0] == 1
    assert_trees_close(padded, full)


@pytest.mark.usefixtures("float64")
def test_divides_by_the_expected_not_the_actual_batch():
    start, _, _ = problem()
    one, _, _ = run([[5]], mechanism=SILENT)
    two, _, _ = run([[5, 7]], mechanism=SILENT)
    other, _, _ = run([[7]], mechanism=SILENT)
    for name in start:
        moved = [start[name] - a[name] for a in (one, other, two)]
        np.testing.assert_allclose(moved[2], moved[0] + moved[1], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_one_report_moves_the_sum_by_at_most_the_clip_norm():
    with_it, _, _ = run([list(range(REPORTS))], mechanism=SILENT)
    for left_out in range(0, REPORTS, 5):
        rest = [i for i in range(REPORTS) if i != left_out]
        without, _, _ = run([rest], mechanism=SILENT)
        change = jax.tree.map(jnp.subtract, with_it, without)
        norm = np.sqrt(sum(float((c**2).sum()) for c in jax.tree.leaves(change)))
        assert norm <= CLIP * RATE / MECHANISM.expected_batch_size * (1 + 1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_report_with_a_bad_gradient_is_left_out_and_nobody_else(value):
    length_of_7 = int(report(problem()[2], 7)[1])
    assert [length_of_7 == report(problem()[2], i)[1] for i in (5, 11)] == [False, False]

    def loss(adapters, frozen, tokens, length, labels):
        bad = jnp.where(length == length_of_7, value, 1.0)
        return bad * loss_fn(adapters, frozen, tokens, length, labels)

    adapters, _, _ = run([[5, 7, 11]], OTHER_SHAPES[1], loss=loss)
    assert_trees_close(adapters, run([[5, 11]], OTHER_SHAPES[1])[0])


@pytest.mark.usefixtures("float64")
def test_diagnostics_stand_where_their_reports_stand():
    batch = [3, 1, 4, 15, 9, 2, 6, 5]
    _, diagnostics, plan = run([batch])
    adapters, frozen, data = problem()
    for slot, i in enumerate(plan.rows):
        if i < 0:
            assert diagnostics.loss[slot] == diagnostics.norm[slot] == 0
            continue
        loss, gradient = one_gradient(adapters, frozen, *report(data, i))
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(diagnostics.loss[slot], loss, rtol=1e-6)
        np.testing.assert_allclose(diagnostics.norm[slot], norm, rtol=1e-6)


@pytest.mark.usefixtures("float64")
def test_a_resumed_step_repeats_itself_exactly():
    """Same state, same plan: the same adapters to the last bit, noise included."""
    adapters, frozen, data = problem()
    step = compiled(BUCKETS, MECHANISM, clipped_gradient_sum)
    plans = [
        BUCKETS.plan(np.asarray(batch, int), np.asarray(data.reports.lengths), CAPACITY)
        for batch in BATCHES
    ]
    state = TrainState(adapters, optimizer().init(adapters))
    for plan in plans[:2]:
        state, _ = step(state, frozen, data, plan, CLIP)
    resumed = jax.tree.map(jnp.copy, state)
    for plan in plans[2:]:
        state, _ = step(state, frozen, data, plan, CLIP)
    for plan in plans[2:]:
        resumed, _ = step(resumed, frozen, data, plan, CLIP)
    jax.tree.map(np.testing.assert_array_equal, state.adapters, resumed.adapters)


@pytest.mark.usefixtures("float64")
def test_shares_of_four_devices_are_disjoint_complete_and_as_large():
    """Each device's share by itself, on this one device; the mesh adds them up."""
    adapters, frozen, data = problem()
    # A report of which no label is known has no gradient, and would not be counted.
    data = data._replace(labels=jnp.maximum(data.labels, 0))
    share_sum = make_share_sum(loss_fn, clipped_gradient_sum, BUCKETS)
    share = jax.jit(functools.partial(share_sum, devices=4))
    whole = jax.jit(functools.partial(share_sum, device=0, devices=1))
    for batch in BATCHES:
        plan = BUCKETS.plan(np.asarray(batch, int), np.asarray(data.reports.lengths), CAPACITY)
        shares = [share(adapters, frozen, data, plan, CLIP, device=d) for d in range(4)]
        total, diagnostics = whole(adapters, frozen, data, plan, CLIP)
        assert_trees_close(jax.tree.map(lambda *x: sum(x), *(s[0] for s in shares)), total)
        norms = np.stack([s[1].norm for s in shares])
        assert (np.count_nonzero(norms, axis=0) == (plan.rows >= 0)).all()
        np.testing.assert_array_equal(norms.sum(axis=0), diagnostics.norm)
        # One device's norms are those of whole microbatches: count these.
        starts = [
            start + k * rows
            for start, count, rows in zip(plan.starts, plan.counts, BUCKETS.rows, strict=True)
            for k in range(count)
        ]
        taken = (norms[:, starts] > 0).sum(axis=1)
        assert taken.sum() == len(starts)
        assert np.ptp(taken) <= 1


@pytest.mark.usefixtures("float64")
def test_without_privacy_it_is_plain_gradient_descent():
    adapters, diagnostics, _ = run(BATCHES, BUCKETS, SILENT, plain_gradient_sum)
    assert_trees_close(adapters, slow_loop(BATCHES, SILENT, clip=np.inf))
    assert not np.any(diagnostics.norm) and np.count_nonzero(diagnostics.loss) == 2


def test_loss_leaves_unknown_labels_out():
    logits = jnp.array([2.0, -1.0, 3.0])
    known = multilabel_loss(logits, jnp.array([1, 0, -1]))
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 3
    np.testing.assert_allclose(known, expected, rtol=1e-6)
    gradient = jax.grad(multilabel_loss)(logits, jnp.array([1, 0, -1]))
    assert gradient[2] == 0 and (gradient[:2] != 0).all()
