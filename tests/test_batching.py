# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.data.batching import Buckets

SHAPES = st.tuples(st.integers(1, 600), st.integers(16, 4096))


def microbatches(buckets, plan):
    """The (width, rows) that a step reads, in its order: what `make_train_step` slices."""
    for width, rows, start, count in zip(
        buckets.widths, buckets.rows, plan.starts, plan.counts, strict=True
    ):
        for k in range(count):
            yield width, plan.rows[start + k * rows : start + (k + 1) * rows]


@given(SHAPES, st.sampled_from([1.15, 2.0, 4.0]))
def test_shapes_cover_every_length(shape, ratio):
    max_length, tokens = shape
    buckets = Buckets.for_lengths(max_length, tokens, ratio)
    assert len(buckets.widths) == len(buckets.rows)
    # the widest is exactly the longest report: a wider one would waste, a narrower one cut
    assert buckets.widths[0] == max_length
    assert all(a > b for a, b in zip(buckets.widths, buckets.widths[1:], strict=False))
    # rounding a report up to a width costs at most the ratio and 3 positions; short ones more
    for wider, narrower in zip(buckets.widths, buckets.widths[1:], strict=False):
        assert ratio * narrower <= wider <= ratio * (narrower + 4)
    assert buckets.widths[-1] <= ratio * (max_length / 8 + 4)
    assert min(buckets.rows) >= 1
    # as many rows as the token budget allows, and never none
    assert list(buckets.rows) == [max(tokens // width, 1) for width in buckets.widths]
    assert buckets.for_features() == Buckets((1,), (buckets.widths[0] * buckets.rows[0],))


@st.composite
def batches(draw):
    """(buckets, lengths of a data set, distinct sampled rows of it)."""
    max_length = draw(st.integers(1, 200))
    buckets = Buckets.for_lengths(max_length, draw(st.integers(16, 2048)))
    # lengths that fill a bucket exactly are where off-by-one errors show
    length = st.one_of(st.integers(1, max_length), st.sampled_from(buckets.widths))
    lengths = draw(st.lists(length, min_size=1, max_size=80))
    sampled = draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    return buckets, np.array(lengths, np.int32), np.array(sampled, np.int64)


@given(batches())
@settings(max_examples=300)
def test_plan(batch):
    buckets, lengths, sampled = batch
    capacity = len(sampled) + max(buckets.rows)
    plan = buckets.plan(sampled, lengths, capacity)
    assert plan.rows.shape == (capacity,) and plan.rows.dtype == np.int32
    assert plan.starts.shape == plan.counts.shape == (len(buckets.widths),)

    cut = list(microbatches(buckets, plan))
    seen = np.concatenate([rows for _, rows in cut]) if cut else np.zeros(0, int)
    # every report exactly once, and padding only at the end of the last microbatch
    np.testing.assert_array_equal(np.sort(seen[: len(sampled)]), np.sort(sampled))
    assert (seen[len(sampled) :] == -1).all() and (plan.rows[len(sampled) :] == -1).all()
    for width, rows in cut:
        assert rows[0] >= 0, "a microbatch of padding alone is wasted work"
        assert (lengths[rows[rows >= 0]] <= width).all()
    # what it costs
    assert buckets.positions(plan) == sum(width * len(rows) for width, rows in cut)
    assert buckets.positions(plan) >= lengths[sampled].sum()


@given(batches())
def test_each_microbatch_takes_the_smallest_bucket_that_holds_its_longest_report(batch):
    buckets, lengths, sampled = batch
    plan = buckets.plan(sampled, lengths, len(sampled) + max(buckets.rows))
    for width, rows in microbatches(buckets, plan):
        assert width == min(w for w in buckets.widths if w >= lengths[rows[0]])


@given(batches())
def test_capacity(batch):
    buckets, lengths, sampled = batch
    plan = buckets.plan(sampled, lengths, len(sampled) + max(buckets.rows))
    needed = int((plan.counts * np.array(buckets.rows)).sum())
    assert needed >= len(sampled)
    buckets.plan(sampled, lengths, needed)  # exactly enough
    if needed:
        with pytest.raises(OverflowError, match=f"need {needed} slots, not {needed - 1}"):
            buckets.plan(sampled, lengths, needed - 1)


def test_empty_draw():
    plan = Buckets.for_lengths(64, 256).plan(np.zeros(0, np.int64), np.array([5, 6], np.int32), 8)
    assert plan.counts.sum() == 0 and (plan.rows == -1).all()


def test_worked_example():
    # 256 positions each
    buckets = Buckets((64, 48, 32, 16), (4, 5, 8, 16))
    lengths = np.array([10, 60, 49, 20, 48, 33, 64], np.int32)
    plan = buckets.plan(np.arange(7), lengths, 12)
    # three reports exceed 48, so one 64-wide microbatch takes the four longest; 33 needs 48 and
    # takes the rest along
    assert plan.rows.tolist() == [6, 1, 2, 4, 5, 3, 0, -1, -1, -1, -1, -1]
    assert plan.starts.tolist() == [0, 4, 9, 9] and plan.counts.tolist() == [1, 1, 0, 0]
    assert buckets.positions(plan) == 4 * 64 + 5 * 48
