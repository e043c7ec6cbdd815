# SPDX-License-Identifier: Apache-2.0
"""The devices of a run as one mesh, and what lies where on it.

Two axes: `data` shares the microbatches of a step, `member` the members of a sweep. Everything a
step reads is whole on every device, but for frozen weights, which may be shared out (FSDP).
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdp.evaluation.inference import DATA, MEMBER
from jaxdp.settings import ConfigError

WHOLE = P()  # on every device, as a whole
_SMALL = 2**14
"""Frozen arrays up to this many numbers stay whole: nothing to save, and a collective each."""


def make_mesh(devices: int | None = None, members: int = 1) -> Mesh:
    """A mesh of the first `devices` devices, None for all of all processes.

    As many along `member` as divide both the devices and the members; the rest along `data`.

    Raises:
        ConfigError: there are not as many, or some process would have none of them.
    """
    available = jax.device_count()
    if devices is not None and devices > available:
        raise ConfigError(f"config.run.devices must be at most {available} here, not {devices}")
    if devices not in (None, available) and jax.process_count() > 1:
        raise ConfigError(
            f"config.run.devices must be None with several processes, or all {available} devices"
        )
    chosen = jax.devices()[:devices]
    types = (AxisType.Auto, AxisType.Auto)
    along = math.gcd(members, len(chosen))
    shape = (along, len(chosen) // along)
    return jax.make_mesh(shape, (MEMBER, DATA), axis_types=types, devices=chosen)


def place(tree: Any, mesh: Mesh | None, specs: Any = WHOLE, *, read_only: bool = False) -> Any:
    """The arrays on the mesh, whole on every device or as `specs` say; None: the default device.

    Every process gives the same values. Arrays that are `read_only`, never donated to a program,
    are in memory once for all CPU devices of a process.
    """
    if mesh is None:
        return jax.device_put(tree)

    def one(x, spec):
        sharding = NamedSharding(mesh, spec)
        return put(_shared(x, sharding) if read_only else x, sharding)

    return jax.tree.map(one, tree, jax.tree.broadcast(specs, tree))


def _shared(x: Any, sharding: NamedSharding) -> Any:
    """The array in memory that JAX has aligned, which several CPU devices take as it is."""
    devices = sharding.device_set
    whole = sharding.is_fully_addressable and sharding.is_fully_replicated
    if not whole or len(devices) == 1 or any(d.platform != "cpu" for d in devices):
        return x
    return np.asarray(jax.device_put(x, min(devices, key=lambda d: d.id)))


def put(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """One array, or PRNG key, as `sharding` says; it may span processes, which all have it."""
    across = isinstance(x, jax.Array) and not x.is_fully_addressable
    if sharding.is_fully_addressable or across:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def frozen_specs(frozen: Any, mesh: Mesh | None) -> Any:
    """For each frozen array: shared out over `data` along its longest axis that divides evenly;
    whole without a mesh."""
    devices = mesh.shape[DATA] if mesh else 1

    def spec(array):
        axes = [axis for axis, size in enumerate(array.shape) if size % devices == 0]
        if array.size <= _SMALL or not axes or devices == 1:
            return P()
        longest = max(axes, key=lambda axis: array.shape[axis])
        return P(*(DATA if axis == longest else None for axis in range(array.ndim)))

    return jax.tree.map(spec, frozen)


def gathered(arrays: Any, specs: Any) -> Any:
    """Inside `jax.shard_map`: the arrays, whole on every device where `specs` share them out."""

    def one(array, spec):
        if DATA not in spec:
            return array
        return jax.lax.all_gather(array, DATA, axis=spec.index(DATA), tiled=True)

    return jax.tree.map(one, arrays, jax.tree.broadcast(specs, arrays))
