# SPDX-License-Identifier: Apache-2.0
"""The best dense float32 matrix product that a framework reaches on this machine."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .process import Failed, Process

SHAPES = ((1024, 512, 2048), (2048, 2048, 2048), (4096, 768, 3072), (8192, 512, 512))
"""(M, K, N): large squares, and what BERTs multiply."""


def best_products() -> dict[str, float]:
    """Framework -> GFLOP/s, each in its own process; 0 where that fails."""
    rates = {}
    for framework, best in (("jax", _jax), ("torch", _torch)):
        with Process(Path(os.devnull), JAX_PLATFORMS="cpu") as process:
            try:
                rates[framework] = process.call(best)
            except Failed:
                rates[framework] = 0.0
    return rates


def _jax() -> float:
    import jax

    product = jax.jit(lambda a, b: a @ b)
    return _best(lambda a, b: product(a, b).block_until_ready(), jax.device_put)


def _torch() -> float:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    with torch.inference_mode():
        return _best(torch.matmul, torch.from_numpy)


def _best(multiply: Callable, put: Callable, seconds: float = 0.6) -> float:
    """GFLOP/s of the fastest product of all shapes, each repeated for about `seconds`.

    Args:
        multiply: (a [M, K], b [K, N]) -> their product, complete on return.
        put: numpy array -> operand.
    """
    rng, best = np.random.default_rng(0), 0.0
    for m, k, n in SHAPES:
        a, b = (put(rng.standard_normal(shape, np.float32)) for shape in ((m, k), (k, n)))
        multiply(a, b)  # compiles, starts threads
        began = now = time.perf_counter()
        while now - began < seconds:
            multiply(a, b)
            last, now = now, time.perf_counter()
            best = max(best, 2e-9 * m * k * n / (now - last))
    return best
