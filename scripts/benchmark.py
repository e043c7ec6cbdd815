# SPDX-License-Identifier: Apache-2.0
"""Throughput side by side with peers, on this machine's CPU: one table, one JSON.

    python scripts/benchmark.py --quick
    python scripts/benchmark.py --lengths=openi --json=speed.json
    python scripts/benchmark.py --models=minilm-l6,bert-small --lengths=ct --batch=32 --rounds=5
    python scripts/benchmark.py --memory --models=minilm-l6
    python scripts/benchmark.py --startup

All contenders fine-tune the same backbone (MiniLM with its real weights, the others with random
ones of the published sizes) with the same LoRA (query, value, rank 8) and head in float32, on the
same reports: Open-I's at most 128 tokens long, or made-up ones as long as chest CT reports (log-
normal, median 300 tokens, cut at 512). Each sits in a process of its own, which sleeps while others
step. In every round all take one logical step on the same Poisson draw, in an order that rotates;
ratios are those of one round, then their median.

    ours, ours-nonprivate     jaxdp with privacy, and without
ours, ours-nonprivate    jaxdp with privacy, and without
jax-privacy              clipped_grad of JAX-Privacy on our model, reports padded to the maximum
opacus-*, ghost-*        Opacus with hooks, and with ghost clipping; PEFT, transformers, SDPA
torch-*                  the same without privacy
ours-last2               LoRA on the last two layers, on the cached output of those below
opacus-last2-*           the same with the layers below frozen
*-fixed                  padded to the maximum
*-dynamic                padded to the longest report of each physical batch, as drawn
*-sorted                 the same, with the logical batch sorted by length before

All use every core. Peers compute 16, 32 or 64 reports at once, whatever was fastest (--quick: 16).
GFLOP/s are those of the matrix products that a step needs at its padded positions
(jaxdp/benchmark/flops.py), "of matmul" their share of the best dense float32 product that jax or
torch reaches here, "useful" what of them is not padding. "compile" is what the first step takes
beyond a later one, "first step" the time from starting Python to its end. A contender that fails
has its error in its row. Needs the extras: pip install -e ".[baseline,audit]"
"""

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from jaxdp.cli import USER_ERRORS, fail
from jaxdp.config import Config, inherit
from jaxdp.progress import Display
from jaxdp.runtime import prepare
from jaxdp.training.rundir import write_json

_MODELS = flags.DEFINE_list("models", None, "Backbones; default: all four, for --memory MiniLM.")
_LENGTHS = flags.DEFINE_list("lengths", ["openi", "ct"], "openi (max 128), ct (max 512).")
_CONTENDERS = flags.DEFINE_list("contenders", None, "Default: all.")
_BATCH = flags.DEFINE_float("batch", 256.0, "Expected reports of a logical batch.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed steps of each; with --quick 7.")
_QUICK = flags.DEFINE_bool("quick", False, "MiniLM on Open-I, few contenders, batch 32: 3 minutes.")
_MEMORY = flags.DEFINE_bool("memory", False, "Instead: our peak memory by logical batch.")
_BATCHES = flags.DEFINE_list("batches", ["256", "4096"], "--memory: logical batches.")
_STARTUP = flags.DEFINE_bool("startup", False, "Instead: time to train.py's first step.")
_CONFIG = flags.DEFINE_string("startup_config", "openi_eps8", "--startup: name in configs/.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for a JAX trace of one step of ours.")
_JSON = flags.DEFINE_string("json", None, "Also write everything to this file, as it comes.")


def main(argv) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings are given as --name=value")
    needed = ("torch", "transformers", "peft", "opacus", "jax_privacy")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        fail(f"{', '.join(missing)} not installed; run pip install -e '.[baseline,audit]'")
    _check()
    prepare()
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)  # a table that is piped to a file has room
    try:
        if _STARTUP.value:
            _startup(console)
        else:
            _measure(console)
    except USER_ERRORS as error:
        fail(error)


def _check() -> None:
    """Ends with one line that names the flag, if a value cannot be used."""
    # The extras may be missing where only --help is asked for.
    from jaxdp.benchmark.contenders import CONTENDERS
    from jaxdp.benchmark.inputs import LENGTHS, MODEL_NAMES

    for flag, allowed in ((_MODELS, MODEL_NAMES), (_LENGTHS, LENGTHS), (_CONTENDERS, CONTENDERS)):
        if wrong := [name for name in flag.value or () if name not in allowed]:
            fail(f"--{flag.name}: {wrong[0]!r} is none of {', '.join(allowed)}")
        if flag.value == []:
            fail(f"--{flag.name} must name at least one of {', '.join(allowed)}")
    if _ROUNDS.value < 1:
        fail(f"--rounds must be at least 1, not {_ROUNDS.value}")
    if not 1 <= _BATCH.value <= 2048:
        fail(f"--batch must be from 1 to 2048, not {_BATCH.value:g}")
    if not _BATCHES.value or not all(b.isdigit() and int(b) > 0 for b in _BATCHES.value):
        fail(f"--batches must be whole numbers above 0, not {','.join(_BATCHES.value)!r}")
    if not _config_file().exists():
        fail(f"--startup_config: there is no {_CONFIG.value!r} in configs/")
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        fail(f"--json: there is no folder for {_JSON.value}")


def _config_file() -> Path:
    return Path(__file__).parents[1] / "configs" / f"{_CONFIG.value}.py"


def _measure(console: Console) -> None:
    """Speed, or memory, for all combinations; each is printed and written once it is done."""
    from jaxdp.benchmark import contenders, inputs, run, summary

    began = time.perf_counter()

    def say(text: str) -> None:
        seconds = f"[dim]{time.perf_counter() - began:6.0f} s[/]"
        console.print(f"{seconds}  {text}", highlight=False, soft_wrap=True)

    models, lengths = _MODELS.value or list(inputs.MODEL_NAMES), _LENGTHS.value
    names, batches = _CONTENDERS.value or list(contenders.CONTENDERS), [_BATCH.value]
    rounds = _ROUNDS.value
    if _QUICK.value:
        # XLA prepares a width's products when it first meets it, which so few reports do late.
        rounds = _ROUNDS.value if _ROUNDS.present else 7
        models, lengths, batches = _MODELS.value or ["minilm-l6"], ["openi"], [32.0]
        names = _CONTENDERS.value or list(contenders.QUICK)
    if _MEMORY.value:
        models, names, batches = _MODELS.value or ["minilm-l6"], ["ours"], _batches()
        lengths, rounds = ["openi"], 1
    document: dict[str, Any] = {"machine": _machine(), "results": []}
    for result in run.measure(
        models,
        lengths,
        batches,
        names,
        count=rounds,
        tune=not (_QUICK.value or _MEMORY.value),
        profile=Path(_PROFILE.value) if _PROFILE.value else None,
        report=say,
    ):
        document["results"].append(result)
        _write(document)
        title = "{model}, {lengths} at most {max_length} tokens, batch {batch:g}".format(**result)
        table = result["contenders"]
        console.print(_table(title, summary.HEADER, summary.rows(table)))
        if result["goals"]:
            header = ("reports/s in the same round", "median (range)", "wanted", "met")
            console.print(_table(title, header, summary.goal_rows(result["goals"])))
        if busy := [n for n, row in table.items() if row.get("idle_cpu", 0) > 0.02]:
            say(f"[yellow]did not sleep while others stepped: {', '.join(busy)}[/]")
    if _MEMORY.value:
        _print_memory(console, document)
        _write(document)


def _batches() -> list[float]:
    return [float(batch) for batch in _BATCHES.value]


def _print_memory(console: Console, document: dict[str, Any]) -> None:
    """Peak memory by batch, over that of the first batch."""
    first: dict[tuple, int] = {}
    rows = []
    for result in document["results"]:
        row = result["contenders"]["ours"]
        if row["error"] is None:
            base = first.setdefault((result["model"], result["lengths"]), row["peak_memory"])
            row["over_first_batch"] = row["peak_memory"] / base
            cells = (f"{row['peak_memory'] / 1e9:.3f}", f"{row['over_first_batch']:.3f}")
            rows.append([result["model"], result["lengths"], f"{result['batch']:g}", *cells])
    header = ("model", "lengths", "batch", "peak GB", "over the first")
    console.print(_table("Peak memory of a process that trains", header, rows))


def _startup(console: Console) -> None:
    """Time to the first step, by part."""
    from jaxdp.benchmark import startup

    settings = inherit(str(_config_file()), _CONFIG.value)
    config = Config.from_dict(settings.to_dict())
    with Display(console, "startup", status="training in fresh processes"):
        result = startup.measure(config, _ROUNDS.value)
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
    header = ("part, seconds (compiling)", "cold", "warm: compiled before", "data.cache as well")
    console.print(_table(f"{_CONFIG.value}, from starting Python", header, rows))
    _write({"machine": _machine(), "config": _CONFIG.value, "startup": result})


def _machine() -> dict[str, Any]:
    names = ("jax", "flax", "jax_privacy", "torch", "opacus", "peft", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"cores": os.cpu_count(), "system": platform.platform(), "versions": versions}


def _write(document: dict[str, Any]) -> None:
    if _JSON.value:
        write_json(Path(_JSON.value), {"command": shlex.join(["python", *sys.argv])} | document)


def _table(title: str, header, rows) -> Table:
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    app.run(main)
