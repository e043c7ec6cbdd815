# SPDX-License-Identifier: Apache-2.0
"""Where contenders run, and the best dense matrix product that a framework reaches there."""

import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from .process import Failed, Process

SHAPES = [(1024, 512, 2048), (2048, 2048, 2048), (4096, 768, 3072), (8192, 512, 512)]
"""(M, K, N): large squares, and what BERTs multiply."""
LARGE = (8192, 8192, 8192)
"""For accelerators."""


def choose(asked: str | None, find: Callable[[], str]) -> str:
    """The platform asked for, by default what `find` finds.

    Raises:
        ValueError: there is none.
    """
    found = asked if asked == "cpu" else find()
    if asked not in (None, found):
        raise ValueError(f"JAX finds no {asked} here, but a {found}")
    return found


def default_platform() -> str:
    """JAX's own, seen by a process of its own, as one that has seen a GPU holds memory there."""
    with Process() as process:
        return process.call(_default_backend)


def environment(platform: str) -> dict[str, str]:
    """Variables of a process on this platform; several share one card and its memory."""
    if platform == "cpu":
        return {"JAX_PLATFORMS": "cpu"}
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {"CUDA_VISIBLE_DEVICES": card, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def torch_device(platform: str) -> str:
    """That PyTorch uses beside JAX on this platform; it has none beside a TPU."""
    return "cpu" if platform == "cpu" else "cuda"


def best_products(platform: str) -> dict[str, float]:
    """Framework -> GFLOP/s, each in its own process; 0 where that fails. Operands are float32 on a
    CPU, and bfloat16 elsewhere."""
    rates = {}
    for framework, product in (("jax", _jax_product), ("torch", _torch_product)):
        with Process(**environment(platform)) as process:
            try:
                rates[framework] = process.call(_best, product, platform)
            except Failed:
                rates[framework] = 0.0
    return rates


def _default_backend() -> str:
    import jax

    return jax.default_backend()


def _jax_product(dtype: str, device: str) -> tuple[Callable, Callable]:
    """(numpy array -> operand, product to its end); on JAX's default device."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    return partial(jnp.asarray, dtype=dtype), lambda a, b: product(a, b).block_until_ready()


def _torch_product(dtype: str, device: str) -> tuple[Callable, Callable]:
    """The same."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    put = lambda x: torch.from_numpy(x).to(device, getattr(torch, dtype))  # noqa: E731
    return put, lambda a, b: (torch.matmul(a, b), wait())


def _best(product: Callable, platform: str) -> float:
    """GFLOP/s of the fastest product of all shapes, each repeated for 0.6 s."""
    dtype, large = ("float32", []) if platform == "cpu" else ("bfloat16", [LARGE])
    put, multiply = product(dtype, torch_device(platform))
    rng, best = np.random.default_rng(0), 0.0
    for m, k, n in [*SHAPES, *large]:
        a, b = (put(rng.standard_normal(shape, np.float32)) for shape in ((m, k), (k, n)))
        multiply(a, b)  # compiles, starts threads
        began = now = time.perf_counter()
        while now - began < 0.6:
            multiply(a, b)
            last, now = now, time.perf_counter()
            best = max(best, 2e-9 * m * k * n / (now - last))
    return best
