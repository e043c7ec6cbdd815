# SPDX-License-Identifier: Apache-2.0
"""Throughput side by side with peers, on this machine's CPU or GPU: one table, one JSON.

    jaxdp benchmark --quick
    jaxdp benchmark --lengths=openi --json=speed.json

All contenders fine-tune one backbone (MiniLM's real weights, the others' random) with the same LoRA
and head, on the same reports: as long as Open-I's (at most 128 tokens) or as chest CT's (made up,
at most 512). Each sits in a process of its own, which sleeps while others step; in every
round all take one step on the same Poisson draw, in an order that rotates.

ours, ours-nonprivate    jaxdp with privacy, and without; ours-last2: LoRA on the last two layers
jax-privacy              clipped_grad of JAX-Privacy on our model, reports padded to the maximum
opacus-*, ghost-*        Opacus with hooks, and with ghost clipping; torch-*: without privacy
*-fixed, -dynamic        padded to the maximum, or to the longest of each physical batch as drawn
*-sorted                 the same, with the logical batch sorted by length before

They run where JAX does by default, or on --platform. On a CPU all is float32. On a GPU (written for
one, not yet run on one) ours and jax-privacy take bfloat16 and PyTorch TensorFloat-32, but for
ours-tf32, opacus-bf16 (the frozen encoder in bfloat16, batch sorted) and torch-bf16 (autocast,
sorted), and all get ready side by side. A TPU lets in one process at a time.

"wanted" is how many times as fast ours should be at least, "of matmul" the share of the best dense
product here, "useful" what is not padding, "compile" what the first step takes beyond a later one,
"first step" the time from starting Python to its end.
Needs the extras: pip install "jaxdp-text[baseline,audit]"
"""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxdp.config import Config, inherit
from jaxdp.peers.contenders import CONTENDERS, USUAL
from jaxdp.peers.inputs import LENGTHS, MODEL_NAMES
from jaxdp.peers.machine import choose, default_platform
from jaxdp.progress import Display

from . import config_file, fail, require, table
from .define import Define

DEFINE = Define()
_MODELS = DEFINE.list("models", None, "Backbones; default: all four, for --memory MiniLM.")
_LENGTHS = DEFINE.list("lengths", ["openi", "ct"], "openi (max 128), ct (max 512).")
_CONTENDERS = DEFINE.list("contenders", None, "Default: all; on a CPU all float32 ones.")
_PLATFORM = DEFINE.enum("platform", None, ("cpu", "gpu", "tpu"), "Default: JAX's own.")
_BATCH = DEFINE.float(
    "batch", None, "Reports of a logical batch; default: 256, beyond a CPU 2048.", lower_bound=1
)
_ROUNDS = DEFINE.integer("rounds", 3, "Timed steps of each; with --quick 7.", lower_bound=1)
_QUICK = DEFINE.bool("quick", False, "MiniLM on Open-I, few contenders: 3 minutes on a CPU.")
_MEMORY = DEFINE.bool("memory", False, "Instead: our peak memory by logical batch.")
_BATCHES = DEFINE.list("batches", ["256", "4096"], "--memory: logical batches, without --batch.")
_STARTUP = DEFINE.bool("startup", False, "Instead: time to train.py's first step.")
_CONFIG = DEFINE.string("startup_config", "openi_eps8", "--startup: name, or Python file.")
_PROFILE = DEFINE.string("profile", None, "Folder for a JAX trace of one step of ours.")
DEFINE.json("Also write everything to this file, as it comes.")


def main() -> None:
    require("baseline,audit", "torch", "transformers", "peft", "opacus", "jax_privacy")
    _check()
    try:
        platform = choose(_PLATFORM.value, default_platform)
    except (RuntimeError, ValueError) as error:
        fail(f"--platform: {error}")
    jax.config.update("jax_platforms", "cpu")  # jobs are made there, and the device left to others
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # a table that is piped to a file has room
    if _STARTUP.value:
        _startup(console, platform)
    else:
        _measure(console, platform)


def _check() -> None:
    """Ends with one line that names the flag, if a value cannot be used."""
    for flag, allowed in ((_MODELS, MODEL_NAMES), (_LENGTHS, LENGTHS), (_CONTENDERS, CONTENDERS)):
        if wrong := [name for name in flag.value or () if name not in allowed]:
            fail(f"--{flag.name}: {wrong[0]!r} is none of {', '.join(allowed)}")
        if flag.value == []:
            fail(f"--{flag.name} must name at least one of {', '.join(allowed)}")
    if _BATCH.present and _BATCH.value > 2048 and not _MEMORY.value:
        fail(f"--batch must be at most 2048, not {_BATCH.value:g}")
    if not _BATCHES.value or not all(b.isdigit() and int(b) > 0 for b in _BATCHES.value):
        fail(f"--batches must be whole numbers above 0, not {','.join(_BATCHES.value)!r}")


def _measure(console: Console, platform: str) -> None:
    """Speed, or memory, for all combinations; each is printed and written once it is done."""
    from jaxdp.peers import benchmark, summary

    began = time.perf_counter()

    def say(text: str) -> None:
        seconds = f"[dim]{time.perf_counter() - began:6.0f} s[/]"
        console.print(f"{seconds}  {text}", highlight=False, soft_wrap=True)

    models, lengths, count = _MODELS.value, _LENGTHS.value, _ROUNDS.value
    usual = USUAL[platform]
    names, batches = _CONTENDERS.value or usual.names, [_BATCH.value or usual.batch]
    if _QUICK.value or _MEMORY.value:
        models, lengths = models or ["minilm-l6"], lengths if _LENGTHS.present else ["openi"]
    if _QUICK.value:
        # XLA prepares a width's products when it first meets it, which so few reports do late.
        count = count if _ROUNDS.present else 7
        names = _CONTENDERS.value or usual.quick_names
        batches = [_BATCH.value or usual.quick_batch]
    if _MEMORY.value:
        names, count = ["ours"], 1
        batches = [_BATCH.value] if _BATCH.present else [float(batch) for batch in _BATCHES.value]
    tune = not (_QUICK.value or _MEMORY.value)
    profile = Path(_PROFILE.value) if _PROFILE.value else None
    rounds = benchmark.Rounds(platform, count, tune, say, profile)
    document: dict[str, Any] = _about(platform) | {"results": []}
    for result in benchmark.measure(models or MODEL_NAMES, lengths, batches, names, rounds):
        document["results"].append(result)
        DEFINE.write_json(document)
        title = "{model}, {lengths} at most {max_length} tokens, batch {batch:g}".format(**result)
        contenders = result["contenders"]
        console.print(table(title, summary.HEADER, summary.rows(contenders)))
        if busy := [n for n, row in contenders.items() if row.get("idle_cpu", 0) > 0.02]:
            say(f"[yellow]did not sleep while others stepped: {', '.join(busy)}[/]")


def _startup(console: Console, platform: str) -> None:
    """Time to the first step, by part."""
    from jaxdp.peers import startup

    path = Path(config_file(_CONFIG.value))
    config = Config.from_dict(inherit(str(path), path.stem).to_dict())
    with Display(console, "startup", status="training in fresh processes"):
        result = startup.measure(config, _ROUNDS.value, platform)
    columns = ([result["cold"]], result["warm"], result["cached"])
    rows = []
    for part in result["cold"]["parts"]:
        cells = [part]
        for runs in columns:
            times = [[*run["parts"][part].values()] for run in runs]
            cells.append("{:.2f} ({:.2f})".format(*np.median(times, axis=0)))
        rows.append(cells)
    totals = [
        np.percentile([r["first_step_seconds"] for r in runs], [50, 0, 100]) for runs in columns
    ]
    rows.append(["to the first step", *("{:.1f} ({:.1f} to {:.1f})".format(*t) for t in totals)])
    header = (
        "part, seconds (compiling)",
        "cold",
        "warm: compiled, start kept",
        "data.cache as well",
    )
    console.print(table(f"{_CONFIG.value}, from starting Python", header, rows))
    DEFINE.write_json(_about(platform) | {"config": _CONFIG.value, "startup": result})


def _about(on: str) -> dict[str, Any]:
    """The command, and the machine."""
    names = ("jax", "flax", "jax_privacy", "torch", "opacus", "peft", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    system = {"cores": os.cpu_count(), "system": platform.platform(), "platform": on}
    command = shlex.join(["python", *sys.argv])
    return {"command": command, "machine": system | {"versions": versions}}
