# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one run: how they find each other, and what they must agree on.

Process 0 alone writes and shows anything, and draws the secret. Every process reads the data and
runs the same program, so whatever one of them decides alone would leave the others waiting. With
one process, everything here does nothing.
"""

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdp.settings import ConfigError
from jaxdp.training.mesh import DATA
from jaxdp.training.randomness import digest_of

from .directory import RunError
from .interrupt import Interrupt

T = TypeVar("T")
_MESSAGE = 1000  # bytes of an error's text that other processes get to know
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the other processes, if srun started several or the variables above say so.

    Raises:
        ConfigError: only some of the variables are set, or they are no numbers.
    """
    options = {}
    if any(name in os.environ for name in _VARIABLES):
        try:
            address, count, index = (os.environ[name] for name in _VARIABLES)
            options = dict(
                coordinator_address=address, num_processes=int(count), process_id=int(index)
            )
        except (KeyError, ValueError):
            raise ConfigError(
                "several processes need a host:port and two numbers in the environment: "
                + ", ".join(_VARIABLES)
            ) from None
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    # JAX's own handler of SIGTERM would be in the way of `Interrupt`.
    jax.config.update("jax_enable_preemption_service", False)
    # A process that fails alone waits as long for the others; then they are told, and end too.
    jax.distributed.initialize(**options, shutdown_timeout_seconds=20)


def is_first() -> bool:
    return jax.process_index() == 0


def on_all(fn: Callable[[], T]) -> T:
    """fn() on every process; where it fails on one, it fails on all.

    Raises:
        RunError: it failed on another process; or what `fn` raises here.
    """
    if jax.process_count() == 1:
        return fn()
    result, error = None, None
    try:
        result = fn()
    except Exception as caught:
        error = caught
    text = b"" if error is None else (str(error) or type(error).__name__).encode()[:_MESSAGE]
    padded = np.frombuffer(text.ljust(_MESSAGE, b"\0"), np.uint8)
    texts = [row.tobytes().rstrip(b"\0") for row in multihost_utils.process_allgather(padded)]
    if error is not None:
        raise error
    for index, text in enumerate(texts):
        if text:
            raise RunError(f"process {index} failed: {text.decode(errors='replace')}")
    return result


def first(fn: Callable[[], T]) -> T | None:
    """fn() on process 0, None on the others; they wait for it, and fail if it fails."""
    return on_all(fn if is_first() else lambda: None)


def from_first(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Process 0's arrays, bit for bit, on every process; the others' give shapes and dtypes."""
    if jax.process_count() == 1:
        return arrays
    arrays = [np.asarray(array) for array in arrays]
    content = np.concatenate([np.frombuffer(a.tobytes(), np.uint8) for a in arrays])
    content = multihost_utils.broadcast_one_to_all(content).tobytes()
    ends = np.cumsum([array.nbytes for array in arrays])
    return [
        np.frombuffer(content[end - array.nbytes : end], array.dtype).reshape(array.shape)
        for array, end in zip(arrays, ends, strict=True)
    ]


def require_same(parts: dict[str, Iterable[bytes]]) -> None:
    """RunError unless every process has the same bytes in every part; names the part."""
    if jax.process_count() == 1:
        return
    digests = [np.frombuffer(digest_of(records), np.uint8) for records in parts.values()]
    gathered = multihost_utils.process_allgather(np.stack(digests))
    for name, column in zip(parts, np.moveaxis(gathered, 1, 0), strict=True):
        for index, other in enumerate(column):
            if (other != column[0]).any():
                raise RunError(
                    f"process {index} has other {name} than process 0; all must read the same"
                )


class SharedInterrupt:
    """Whether any process was asked to stop: the same answer on all of them at the same step.

    With several processes it is that of the step before, so that nobody waits for it.
    """

    def __init__(self, interrupt: Interrupt, mesh: Mesh):
        self._interrupt = interrupt
        self._sharding = NamedSharding(mesh, P(DATA))
        self._highest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, P()))
        self._asked: jax.Array | None = None

    def raising(self, error: Callable[[], BaseException]) -> AbstractContextManager[None]:
        """See `Interrupt.raising`; nothing with several processes, which must stop together."""
        return self._interrupt.raising(error) if jax.process_count() == 1 else nullcontext()

    def received(self) -> bool:
        """To be asked once a step, by all; sets `received` of the interrupt where it is true."""
        if jax.process_count() == 1:
            return self._interrupt.received is not None
        before = self._asked
        here = np.full(jax.local_device_count(), int(self._interrupt.received or 0), np.int32)
        self._asked = self._highest(jax.make_array_from_process_local_data(self._sharding, here))
        number = 0 if before is None else int(before)
        if number:
            self._interrupt.received = signal.Signals(number)
        return number != 0
