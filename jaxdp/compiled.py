# SPDX-License-Identifier: Apache-2.0
"""What XLA makes of a program, for a chip that need not be here."""

import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """What compilers know it by, and its nominal bfloat16 FLOP/s and bytes/s of memory."""

    platform: str
    topology: str
    flops: float
    bandwidth: float
    options: dict[str, str] = {}


# As XLA describes a card that it finds (GpuTargetConfigProto).
_H100 = """
gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 minor: 0 }
registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "H100"
"""
CHIPS = {
    "cpu": None,
    "h100": Chip("cuda", "", 989e12, 3352e9, {"target_config": _H100, "topology": "1x1x1"}),
    "v5e": Chip("tpu", "v5e:2x2", 197e12, 819e9),
    "v5p": Chip("tpu", "v5p:2x2x1", 459e12, 2765e9),
    "v6e": Chip("tpu", "v6e:2x2", 918e12, 1640e9),
}
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%\S+ = .*? ([a-z][\w-]*)\(", re.M)
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "reshape", "while"}
_FREE |= {"copy-start", "copy-done", "slice-start", "slice-done"}  # beside other work


def device_of(chip: str) -> jax.Device:
    """A device to lower for; a RuntimeError says that its compiler is not installed."""
    here, target = jax.devices("cpu")[0], CHIPS[chip]  # looks for compilers, too
    if target is None:
        return here
    found = topologies.get_topology_desc(target.topology, target.platform, **target.options)
    return found.devices[0]


def count(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What the compiler made of a program, loops counted once.

    Kernels are instructions outside of fusions that do something, scalars too. FLOPs and bytes are
    None for CUDA, whose compiler does not tell; cycles are the TPU compiler's own estimate.
    """
    text, cost = compiled.as_text(), compiled.cost_analysis() or {}
    inside = set(re.findall(r"(?:calls|to_apply)=%([\w.-]+)", text))
    kernels = []
    for computation in text.split("\n\n"):
        name = re.search(r"^(?:ENTRY )?%([\w.-]+) \(", computation, re.M)
        if name and name[1] not in inside:
            kernels += [op for op in _INSTRUCTION.findall(computation) if op not in _FREE]
    return {
        "kernels": len(kernels),
        "fusions": kernels.count("fusion"),
        "to_bfloat16": len(re.findall(r"= bf16\S* convert\(", text)),
        "flops": cost.get("flops"),
        "bytes": cost.get("bytes accessed"),
        "cycles": sum(map(int, re.findall(r'estimated_cycles":"(\d+)"', text))) or None,
    }


def roofline(cost: dict[str, Any], chip: Chip | None) -> float | None:
    """Seconds in which the chip could do it at best, if arithmetic and traffic overlap."""
    if chip is None or cost["flops"] is None:
        return None
    return max(cost["flops"] / chip.flops, cost["bytes"] / chip.bandwidth)
