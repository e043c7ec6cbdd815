# SPDX-License-Identifier: Apache-2.0
"""Running a model over many reports, in the shapes that training uses."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.store import stored
from jaxdp.models.classifier import ReportClassifier


def in_batches(
    fn: Callable, reports: Packed, buckets: Buckets
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (rows [B], lengths [B], fn's output [B, ...]) until every report was seen once.

    Args:
        fn: (values [rows, width, ...], lengths [rows]) -> array with leading axis [rows]; called
            with the shapes of `buckets` only, so a jitted fn compiles once per bucket in use.
        reports: on the host.
        buckets: widths that hold the longest report.
    """
    everything = np.arange(len(reports))
    plan = buckets.plan(everything, reports.lengths, len(reports) + max(buckets.rows))
    for width, size, start, count in zip(
        buckets.widths, buckets.rows, plan.starts, plan.counts, strict=True
    ):
        for begin in range(start, start + count * size, size):
            rows = plan.rows[begin : begin + size]
            values, lengths = reports.gather(rows, width)
            real = rows >= 0
            yield rows[real], lengths[real], np.asarray(fn(values, lengths))[real]


def packed_logits(
    model: ReportClassifier,
    values: jax.Array,
    length: jax.Array,
    level: int,
    center: jax.Array | float = 0.0,
) -> jax.Array:
    """Logits [num_labels] of one report as a `Packed` row holds it at `level`.

    `center` [H] is subtracted from the feature before the head.
    """
    x = values[0] if level == model.feature_level else values
    logits = model.classifier(model.advance(x, length, level, model.feature_level) - center)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class Predictor:
    """Probabilities of reports given at some level; compiled once per shape, for any weights.

    Args:
        graphdef: from `lora.split`; its two states are given to `__call__`.
        level: what the reports hold, see `models.classifier`.
        buckets: shapes to run in.
    """

    def __init__(self, graphdef: nnx.GraphDef, level: int, buckets: Buckets):
        self._buckets = buckets

        def probabilities(adapters, frozen, center, values, lengths):
            model = nnx.merge(graphdef, adapters, frozen)
            one = partial(packed_logits, model, level=level, center=center)
            return jax.nn.sigmoid(jax.vmap(lambda x, n: one(x, n))(values, lengths))

        self._probabilities = jax.jit(probabilities)

    def __call__(
        self,
        adapters: nnx.State,
        frozen: nnx.State,
        reports: Packed,
        center: jax.Array | float = 0.0,
    ) -> np.ndarray:
        """[n, num_labels] float32, in the order of `reports`; for `center` see `packed_logits`."""
        fn = partial(self._probabilities, adapters, frozen, center)
        batches = in_batches(fn, reports, self._buckets)
        result = None
        for rows, _, output in batches:
            if result is None:
                result = np.empty((len(reports), output.shape[-1]), np.float32)
            result[rows] = output
        return result


def cache_level(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    reports: Packed,
    start: int,
    level: int,
    buckets: Buckets,
    folder: Path | None = None,
) -> Packed:
    """Carries every report from level `start` to level `level`, once; float32, on the host.

    Hidden states stay packed: [tokens, H] for the reports' real tokens only. Features are [n, H]
    with every length 1. The same level gives the reports back.

    Args:
        graphdef, state: of the model; its LoRA B matrices are zero, as they start.
        reports: at level `start`.
        start, level: see `models.classifier`.
        buckets: shapes to run in.
        folder: for `store.stored`, where the result is found again by a hash of the program, its
            weights and the reports. None keeps nothing.
    """
    if level == start:
        return reports

    @jax.jit
    def advance(state, values, lengths):
        model = nnx.merge(graphdef, state)
        return jax.vmap(lambda x, n: model.advance(x, n, start, level))(values, lengths)

    if folder is None:
        return _carry(partial(advance, state), reports, buckets)
    rows = np.full(buckets.rows[0], -1)
    program = advance.lower(state, *reports.gather(rows, buckets.widths[0])).as_text()
    # Adapters change nothing yet, and would make the hash that of one run.
    base = nnx.filter_state(state, nnx.Not(nnx.Any(nnx.LoRAParam, nnx.PathContains("classifier"))))
    digest = hashlib.sha256(f"{jax.__version__} {buckets} {program}".encode())
    for array in (*jax.tree.leaves(base), reports.lengths, reports.values):
        digest.update(np.ascontiguousarray(array).data)
    key = digest.hexdigest()[:32]
    return stored(folder, key, lambda: (_carry(partial(advance, state), reports, buckets), 0))[0]


def _carry(advance: Callable, reports: Packed, buckets: Buckets) -> Packed:
    values, lengths = None, reports.lengths
    for rows, row_lengths, output in in_batches(advance, reports, buckets):
        if output.ndim == 2:  # features
            lengths = np.ones_like(reports.lengths)
            row_lengths, output = np.ones_like(row_lengths), output[:, None]
        if values is None:
            packed = Packed.from_lengths(
                np.empty((int(lengths.sum()), output.shape[-1]), np.float32), lengths
            )
            values = packed.values
        for row, length, states in zip(rows, row_lengths, output, strict=True):
            values[packed.offsets[row] :][:length] = states[:length]
    return packed
