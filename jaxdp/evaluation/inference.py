# SPDX-License-Identifier: Apache-2.0
"""Running a model over many reports, in the shapes that training uses."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from jaxdp.data.batching import Buckets
from jaxdp.data.packed import Packed
from jaxdp.models.classifier import ReportClassifier
from jaxdp.models.tasks import TASKS

DATA, MEMBER = "data", "member"  # the mesh axes that share reports, and the members of a sweep

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
    """Yields (rows [B], lengths [B], fn's output) until every report was seen once; row -1, which
    has length 0, is none.

    Args:
        fn: (values [rows, width, ...], lengths [rows], or where reports share rows [rows, reports])
            -> any array; called with the shapes of `buckets` only, so a jitted fn compiles once per
            bucket in use.
        reports: on the host.
        buckets: widths that hold the longest report.
        devices: that many microbatches of one bucket are given to `fn` at once, end to end; each
            is the one that it would be alone.
    """
    everything = np.arange(len(reports))
    plan = buckets.plan(everything, reports.lengths, buckets.capacity(len(reports)))
    computing = None
    shares = zip(buckets.shapes, plan.starts, plan.counts, strict=True)
    for (width, size, together), start, count in shares:
        end = start + count * size
        for begin in range(start, end, devices * size):
            rows = np.full(devices * size, -1, plan.rows.dtype)
            taken = plan.rows[begin : min(begin + devices * size, end)]
            rows[: len(taken)] = taken
            values, lengths = reports.gather(rows, width, together)
            # Waited for only once the devices have the next one to work on.
            ready, computing = computing, (rows, lengths.ravel(), fn(values, lengths))
            if ready:
                yield *ready[:2], np.asarray(ready[2])
    if computing:
        yield *computing[:2], np.asarray(computing[2])


def on_all(fn: Callable, mesh: Mesh | None, members: Any = None) -> Callable:
    """fn(weights, values, lengths), jitted; every device of the mesh runs it on its own share of
    the rows, in the shapes and to the bits of one device.

    Weights may be shared out over the mesh, and are whole while fn runs. With `members`, axes of
    the weights as `jax.vmap` takes them, fn runs for each member, and what it gives gets an axis of
    members after the rows.
    """

    def vmapped(fn):
        axes = {"in_axes": (members, None, None), "out_axes": 1, "spmd_axis_name": MEMBER}
        return fn if members is None else jax.vmap(fn, **axes)

    if mesh is None:
        return jax.jit(vmapped(fn))
    rows = NamedSharding(mesh, P(DATA))

    # Over several processes, each gets the output of all of them.
    @partial(jax.jit, out_shardings=rows if rows.is_fully_addressable else NamedSharding(mesh, P()))
    def shared(weights, values, lengths):
        specs = (P(), P(DATA), P(DATA))
        # check_vma: see `training.step.sum_over_devices`.
        each = jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=P(DATA), check_vma=False)
        return vmapped(each)(weights, values, lengths)

    def call(weights, *reports):
        shares = (jax.make_array_from_callback(x.shape, rows, x.__getitem__) for x in reports)
        return shared(weights, *shares)

    return call


def _on_mesh(weights, mesh: Mesh):
    """Those that are on one device, whole on every device; others are where they should be."""

    def put(x):
        there = isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat)
        return x if there else jax.device_put(x, NamedSharding(mesh, P()))

    return jax.tree.map(put, weights)


def run_on_all(
    fn: Callable, weights: Any, reports: Packed, buckets: Buckets, mesh: Mesh | None, watch: Watch
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows [B], lengths [B], output) of `in_batches`, for an fn of `on_all` and its weights."""
    weights = weights if mesh is None else _on_mesh(weights, mesh)
    devices = 1 if mesh is None else mesh.shape[DATA]
    with watch(len(reports)) as seen:
        for done in in_batches(partial(fn, weights), reports, buckets, devices):
            yield done
            seen(int((done[0] >= 0).sum()))


def shaped(tree: Any, device: jax.Device) -> Any:
    """Shapes and types of the arrays, as if they were on `device`, which need not be here."""
    sharding = SingleDeviceSharding(device)

    def one(x):
        kind = jax.typeof(x)
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def packed_logits(
    model: ReportClassifier,
    values: jax.Array,
    length: jax.Array,
    level: int,
    center: jax.Array | float = 0.0,
) -> jax.Array:
    """Logits [num_labels] of one report as a `Packed` row holds it at `level`; of the K reports of
    a row, given their lengths, [K, num_labels].

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
            logits = jax.vmap(lambda x, n: one(x, n))(values, lengths)
            return (activation or TASKS[model.task].activation)(logits.reshape(lengths.size, -1))

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
        weights, result = (adapters, frozen, center), None
        done = run_on_all(self._probabilities, weights, reports, self._buckets, self._mesh, watch)
        for rows, _, output in done:
            if result is None:
                result = np.empty((len(reports), *output.shape[1:]), np.float32)
            result[rows[rows >= 0]] = output[rows >= 0]
        return result if self._members is None else np.moveaxis(result, 1, 0)
