# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.config import ON_CPU, Config, default_config
from jaxdp.data.batching import Buckets, any_lengths
from jaxdp.training.setup import token_buckets


def microbatches(buckets, plan):
    """The (width, rows) that a step reads, in its order: what `make_train_step` slices."""
    for width, rows, start, count in zip(
        buckets.widths, buckets.rows, plan.starts, plan.counts, strict=True
    ):
        for k in range(count):
            yield width, plan.rows[start + k * rows : start + (k + 1) * rows]


def padded(lengths, widths):
    """Positions that reports of these lengths take, each in the narrowest of the widths for it."""
    return sum(min(width for width in widths if width >= length) for length in lengths)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 5))
def test_no_other_widths_pad_less(lengths, count):
    found = Buckets.for_lengths(np.array(lengths), 64, count).widths
    longest = max(lengths)
    assert found[0] == longest and len(found) <= count
    assert all(a > b for a, b in itertools.pairwise(found))
    # a width that no report needs would be compiled for nothing
    assert {min(w for w in found if w >= length) for length in lengths} == set(found)
    narrower = range(4, longest, 4)
    others = (
        padded(lengths, (longest, *some))
        for k in range(count)
        for some in itertools.combinations(narrower, k)
    )
    assert padded(lengths, found) == min(others)


@given(st.integers(1, 600), st.integers(16, 4096), st.integers(1, 8))
def test_as_many_rows_as_positions_allow_and_never_none(longest, tokens, count):
    buckets = Buckets.for_lengths(np.arange(1, longest + 1), tokens, count)
    assert list(buckets.rows) == [max(tokens // width, 1) for width in buckets.widths]
    assert buckets.for_features() == Buckets((1,), (buckets.widths[0] * buckets.rows[0],))


@pytest.mark.parametrize("given, wanted", [(3, 3), (None, ON_CPU.widths)])
def test_a_run_has_the_widths_that_it_is_configured_to_have(given, wanted):
    config = default_config()
    config.privacy.epsilon, config.train.widths, config.train.mode = None, given, "full"
    buckets = token_buckets(Config.from_dict(config.to_dict()), np.arange(1, 101))
    assert len(buckets.widths) == wanted != 4 and buckets.reports is None


@pytest.mark.parametrize(
    "changes, shared",
    [
        ({}, True),
        ({"train.mode": "lora-ffa"}, True),
        ({"train.mode": "full"}, False),
        ({"train.mode": "bitfit"}, False),
        ({"data.windows": 2}, False),
        ({"train.widths": 1}, False),
    ],
)
def test_reports_share_rows_where_they_can(changes, shared):
    values = default_config().to_dict()
    values["privacy"]["epsilon"] = None
    for name, value in changes.items():
        section, field = name.split(".")
        values[section][field] = value
    buckets = token_buckets(Config.from_dict(values), np.arange(1, 101))
    assert (buckets.reports is not None) == shared


@pytest.mark.parametrize("longest", [1, 3, 128, 2048])
def test_where_lengths_are_unknown_widths_are_in_about_equal_ratios(longest):
    lengths = any_lengths(longest)
    assert lengths.min() >= 1 and lengths.max() == longest
    widths = Buckets.for_lengths(lengths, 512, 8).widths
    ratios = [wider / narrower for wider, narrower in itertools.pairwise(widths)]
    if longest > 100:
        assert len(widths) == 8 and 1.15 < min(ratios) and max(ratios) < 1.45


def test_a_report_longer_than_all_widths_is_an_error():
    with pytest.raises(ValueError, match="of 9 tokens, but at most 8 fit"):
        Buckets((8, 4), (2, 4)).plan(np.arange(3), np.array([2, 9, 8], np.int32), 8)


@st.composite
def batches(draw):
    """(buckets, lengths of a data set, distinct sampled rows of it)."""
    max_length = draw(st.integers(1, 200))
    every = np.arange(1, max_length + 1)
    buckets = Buckets.for_lengths(every, draw(st.integers(16, 2048)), draw(st.integers(1, 12)))
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


@st.composite
def shared_batches(draw):
    """As `batches`, for rows that several reports share."""
    longest = draw(st.integers(1, 600))
    length = st.one_of(st.integers(1, longest), st.integers(1, min(longest, 20)))
    lengths = np.array(draw(st.lists(length, min_size=1, max_size=80)), np.int32)
    widths = (longest, longest // 3) if longest > 20 and draw(st.booleans()) else (longest,)
    rows, reports = (tuple(draw(st.integers(1, 5)) for _ in widths) for _ in range(2))
    sampled = draw(st.lists(st.integers(0, len(lengths) - 1), unique=True))
    return Buckets(widths, rows, reports), lengths, np.array(sampled, np.int64)


@given(shared_batches())
@settings(max_examples=300)
def test_a_plan_of_shared_rows(batch):
    buckets, lengths, sampled = batch
    plan = buckets.plan(sampled, lengths, buckets.capacity(len(sampled)))
    seen, microbatches = [], []
    for (width, slots, together), start, count in zip(
        buckets.shapes, plan.starts, plan.counts, strict=True
    ):
        narrower = [other for other in buckets.widths if other < width]
        rows = plan.rows[start : start + count * slots].reshape(-1, together)
        tokens = np.where(rows >= 0, lengths[rows], 0)
        assert (tokens.sum(axis=1) <= width).all()
        # places are filled from the front, and the longest report decides on the width
        assert (np.diff((rows >= 0).astype(int), axis=1) <= 0).all()
        for group in np.split(tokens, count) if count else []:
            assert group.max() > max(narrower, default=0)
        seen += rows[rows >= 0].tolist()
        microbatches += [
            rows[i : i + slots // together] for i in range(0, len(rows), slots // together)
        ]
    assert sorted(seen) == sorted(sampled)  # each once
    assert len(seen) == (plan.rows >= 0).sum()
    # empty rows in the very last microbatch alone, and not only those
    empty = [(group < 0).all(axis=1) for group in microbatches]
    assert not any(e.any() for e in empty[:-1]) and not any(e.all() for e in empty)
    needed = sum(
        count * slots for count, (_, slots, _) in zip(plan.counts, buckets.shapes, strict=True)
    )
    buckets.plan(sampled, lengths, int(needed))
    if needed:
        with pytest.raises(OverflowError, match=f"need {needed} slots, not {needed - 1}"):
            buckets.plan(sampled, lengths, needed - 1)


@pytest.mark.parametrize(
    "mean, longest, widths",
    [
        (5, 16, (32,)),
        (40, 128, (128,)),
        (40, 256, (256,)),
        (40, 500, (512, 128)),
        (70, 128, (128,)),
    ],
)
def test_rows_that_are_shared_are_full(mean, longest, widths):
    lengths = np.random.default_rng(0).lognormal(np.log(mean) - 0.15, 0.55, 20_000)
    lengths = np.append(np.clip(lengths, 3, longest).astype(np.int32), np.int32(longest))
    buckets = Buckets.shared(lengths, 2048)
    assert buckets.widths == widths
    batch = np.arange(4096)
    plan = buckets.plan(batch, lengths, buckets.capacity(len(batch)))
    assert lengths[batch].sum() > 0.9 * buckets.positions(plan)


def test_rows_are_not_shared_where_one_report_fills_them():
    assert Buckets.shared(np.array([1000] * 50 + [580] * 50, np.int32), 512) is None
    assert Buckets.shared(np.array([2000] + [40] * 500, np.int32), 512) is None


@given(reports=st.integers(1, 200), most=st.integers(1, 64))
def test_even_microbatches_are_as_many_and_leave_less_than_a_row_each_empty(reports, most):
    (rows,) = Buckets((128,), (most,)).even(reports).rows
    count = -(-reports // most)
    assert 1 <= rows <= most and -(-reports // rows) == count
    assert count * rows - reports < count


def test_empty_draw():
    plan = Buckets((64, 16), (4, 16)).plan(np.zeros(0, np.int64), np.array([5, 6], np.int32), 8)
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
