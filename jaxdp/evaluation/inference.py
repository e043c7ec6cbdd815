# SPDX-License-Identifier: Apache-2.0
"""Running a model over many reports, in the shapes that training uses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.data.store import key_of, stored
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.tasks import TASKS

_DATA, _MEMBER = "data", "member"
"""The mesh axes that share reports, and the members of a sweep."""

Watch = Callable[..., AbstractContextManager[Callable[[int], None]]]
"""Told how many reports there are before the first, gives what is told how many more are done; or
how many of another unit, where that is its second argument."""


def unwatched(total: int, unit: str = "") -> AbstractContextManager[Callable[[int], None]]:
    """A `Watch` that shows nothing."""
    del total, unit
    return nullcontext(lambda more: None)


def in_batches(
    fn: Callable, reports: Packed, buckets: Buckets, devices: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (rows [B], lengths [B], fn's output [B, ...]) until every report was seen once.

    Args:
        fn: (values [rows, width, ...], lengths [rows]) -> array with leading axis [rows]; called
            with the shapes of `buckets` only, so a jitted fn compiles once per bucket in use.
        reports: on the host.
        buckets: widths that hold the longest report.
        devices: that many microbatches of one bucket are given to `fn` at once, end to end; each
            is the one that it would be alone.
    """
    everything = np.arange(len(reports))
    plan = buckets.plan(everything, reports.lengths, len(reports) + max(buckets.rows))
    computing = None
    for width, size, start, count in zip(
        buckets.widths, buckets.rows, plan.starts, plan.counts, strict=True
    ):
        end = start + count * size
        for begin in range(start, end, devices * size):
            rows = np.full(devices * size, -1, plan.rows.dtype)
            taken = plan.rows[begin : min(begin + devices * size, end)]
            rows[: len(taken)] = taken
            values, lengths = reports.gather(rows, width)
            # Waited for only once the devices have the next one to work on.
            ready, computing = computing, (rows, lengths, fn(values, lengths))
            if ready:
                yield _real(*ready)
    if computing:
        yield _real(*computing)


def _real(rows: np.ndarray, lengths: np.ndarray, output: jax.Array) -> tuple[np.ndarray, ...]:
    real = rows >= 0
    return rows[real], lengths[real], np.asarray(output)[real]


def on_all(fn: Callable, mesh: Mesh | None, members: Any = None) -> Callable:
    """fn(weights, values, lengths), jitted; every device of the mesh runs it on its own share of
    the rows, in the shapes and to the bits of one device.

    Weights may be shared out over the mesh, and are whole while fn runs. With `members`, axes of
    the weights as `jax.vmap` takes them, fn runs for each member, and what it gives gets an axis of
    members after the rows.
    """

    def vmapped(fn):
        axes = {"in_axes": (members, None, None), "out_axes": 1, "spmd_axis_name": _MEMBER}
        return fn if members is None else jax.vmap(fn, **axes)

    if mesh is None:
        return jax.jit(vmapped(fn))
    rows = NamedSharding(mesh, P(_DATA))

    # Over several processes, each gets the output of all of them.
    @partial(jax.jit, out_shardings=rows if rows.is_fully_addressable else NamedSharding(mesh, P()))
    def shared(weights, values, lengths):
        specs = (P(), P(_DATA), P(_DATA))
        # check_vma: see `training.step.sum_over_devices`.
        each = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(_DATA), check_vma=False)
        return vmapped(each)(weights, values, lengths)

    def call(weights, values, lengths):
        values, lengths = (
            jax.make_array_from_callback(x.shape, rows, x.__getitem__) for x in (values, lengths)
        )
        return shared(weights, values, lengths)

    return call


def shaped(tree: Any, device: jax.Device) -> Any:
    """Shapes and types of the arrays, as if they were on `device`, which need not be here."""
    sharding = SingleDeviceSharding(device)

    def one(x):
        kind = jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def _devices(mesh: Mesh | None) -> int:
    return 1 if mesh is None else mesh.shape[_DATA]


def _on_mesh(weights, mesh: Mesh):
    """Those that are on one device, whole on every device; others are where they should be."""

    def put(x):
        there = isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat)
        return x if there else jax.device_put(x, NamedSharding(mesh, P()))

    return jax.tree.map(put, weights)


def packed_logits(
    model: ReportClassifier,
    values: jax.Array,
    length: jax.Array,
    level: int,
    center: jax.Array | float = 0.0,
) -> jax.Array:
    """Logits [num_labels] of one report as a `Packed` row holds it at `level`.

    `center`, like a feature, is subtracted from it before the head.
    """
    x = values[0] if level == model.feature_level else values
    return model.logits(model.advance(x, length, level, model.feature_level) - center)


class Predictor:
    """Probabilities of reports given at some level; compiled once per shape, for any weights.

    Args:
        graphdef: from `lora.split`; its two states are given to `__call__`.
        level: what the reports hold, see `models.classifier`.
        buckets: shapes to run in.
        mesh: devices to share the reports; None is the default device alone.
        members: None, or for the members of a sweep, the axis of each array of (adapters, frozen,
            center), as `jax.vmap` takes them.
        activation: what is made of logits; None is the task's own.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        level: int,
        buckets: Buckets,
        mesh: Mesh | None = None,
        members: Any = None,
        activation: Callable | None = None,
    ):
        self._buckets = buckets
        self._mesh = mesh
        self._members = members

        def probabilities(weights, values, lengths):
            adapters, frozen, center = weights
            model = nnx.merge(graphdef, adapters, frozen)
            one = partial(packed_logits, model, level=level, center=center)
            made = activation or TASKS[model.task].activation
            return made(jax.vmap(lambda x, n: one(x, n))(values, lengths))

        self._probabilities = on_all(probabilities, mesh, members)

    def lower(self, device: jax.Device, *arguments) -> jax.stages.Lowered:
        """One shape without a mesh, from (adapters, frozen, center), values [rows, width, ...] and
        lengths, lowered for a device of any kind, which need not be here."""
        return self._probabilities.lower(*shaped(arguments, device))

    def __call__(
        self,
        adapters: nnx.State,
        frozen: nnx.State,
        reports: Packed,
        center: jax.Array | float = 0.0,
        watch: Watch = unwatched,
    ) -> np.ndarray:
        """[n, num_labels] float32, in the order of `reports`; for `center` see `packed_logits`.
        With members [members, n, num_labels]."""
        weights = (adapters, frozen, center)
        if self._mesh is not None:
            weights = _on_mesh(weights, self._mesh)
        fn = partial(self._probabilities, weights)
        batches = in_batches(fn, reports, self._buckets, _devices(self._mesh))
        result = None
        with watch(len(reports)) as seen:
            for rows, _, output in batches:
                if result is None:
                    result = np.empty((len(reports), *output.shape[1:]), np.float32)
                result[rows] = output
                seen(len(rows))
        return result if self._members is None else np.moveaxis(result, 1, 0)


def advancing(graphdef: nnx.GraphDef, start: int, level: int) -> Callable[..., jax.Array]:
    """(state, values [rows, width, ...], lengths) -> what the reports are at `level`."""

    def advance(state, values, lengths):
        model = nnx.merge(graphdef, state)
        return jax.vmap(lambda x, n: model.advance(x, n, start, level))(values, lengths)

    return advance


def cache_level(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    splits: dict[str, Packed],
    start: int,
    level: int,
    buckets: Buckets,
    folder: Path | None = None,
    mesh: Mesh | None = None,
    watch: Watch = unwatched,
) -> dict[str, Packed]:
    """Carries every report from level `start` to level `level`, once, on the host.

    Hidden states stay packed: [tokens, H] for the reports' real tokens only. Features are [n, H],
    or [n, labels, H] with label attention, with every length 1. float32, but what has a row for
    each label float16: its rounding, 2^-11, is far below what any noise leaves of a feature. The
    same level gives the reports back.

    Args:
        graphdef, state: of the model.
        splits: reports at level `start`, by split; one compilation serves all splits.
        start, level: see `models.classifier`.
        buckets: shapes to run in.
        folder: for `store.stored`, where the result is found again by a hash of the program, its
            weights and the reports. None keeps nothing.
        mesh: devices to share the reports; None is the default device alone. The result is the
            same to the last bit.
        watch: called for each split that is not found in `folder`.
    """
    if level == start:
        return splits

    features = level == nnx.merge(graphdef, state).feature_level
    advance = advancing(graphdef, start, level)
    everywhere = on_all(advance, mesh)

    def carried(reports: Packed) -> Packed:
        weights = state if mesh is None else _on_mesh(state, mesh)
        with watch(len(reports)) as seen:
            fn = partial(everywhere, weights)
            return _carry(fn, reports, buckets, _devices(mesh), seen, features)

    if folder is None:
        return {split: carried(reports) for split, reports in splits.items()}
    some = next(iter(splits.values()))
    rows = np.full(buckets.rows[0], -1)
    program = jax.jit(advance).lower(state, *some.gather(rows, buckets.widths[0])).as_text()
    weights = nnx.filter_state(state, nnx.Not(nnx.PathContains("classifier")))
    if not _adapters_act(nnx.merge(graphdef, state), state, level):
        # Fresh ones change nothing, and would make the hash that of one run.
        weights = nnx.filter_state(weights, nnx.Not(nnx.LoRAParam))

    def kept(reports: Packed) -> Packed:
        arrays = (*jax.tree.leaves(weights), reports.lengths, reports.values)
        key = key_of(f"{jax.__version__} {buckets} {program}", arrays)
        return stored(folder, key, lambda: (carried(reports), 0))[0]

    return {split: kept(reports) for split, reports in splits.items()}


def _adapters_act(model: ReportClassifier, state: nnx.State, level: int) -> bool:
    """Whether any adapter has a say in what the model gives at `level`: its B is not zero."""
    return any(
        path[-1] == "lora_b" and model.level_of(path) < level and bool(leaf[...].any())
        for path, leaf in nnx.to_flat_state(state)
    )


def _kept(shape: tuple[int, ...]) -> type:
    """The type in which rows of this shape are kept, see `cache_level`."""
    return np.float16 if len(shape) == 3 else np.float32


def _carry(
    advance: Callable,
    reports: Packed,
    buckets: Buckets,
    devices: int,
    seen: Callable[[int], None],
    features: bool,
) -> Packed:
    values = None
    lengths = np.ones_like(reports.lengths) if features else reports.lengths
    for rows, row_lengths, output in in_batches(advance, reports, buckets, devices):
        if features:
            row_lengths, output = np.ones_like(row_lengths), output[:, None]
        if values is None:
            shape = (int(lengths.sum()), *output.shape[2:])
            packed = Packed.from_lengths(np.empty(shape, _kept(shape)), lengths)
            values = packed.values
        for row, length, states in zip(rows, row_lengths, output, strict=True):
            values[packed.offsets[row] :][:length] = states[:length]
        seen(len(rows))
    return packed
