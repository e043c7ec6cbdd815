# SPDX-License-Identifier: Apache-2.0
"""Compares jaxdp with the same training in PyTorch: transformers, PEFT and Opacus.

    jaxdp compare --config openi_plain_eps8 --level gradients
    jaxdp compare --config openi_plain_eps8 --level trajectory --steps 5
    jaxdp compare --config openi_plain_eps8 --level runs --epsilons 1,8

Both sides start the main stage of the configuration from the same weights, adapters, token ids and
labels, with the same noise multiplier, sampling probability, clip norm, steps and optimizer; what
comes before it (mean feature, head stage) is run once, by jaxdp, for both. All settings of both
sides are printed side by side.

gradients   norms and clipped sum of one batch, without noise
trajectory  some steps on the same reports, without noise
runs        whole private runs over seeds, each side with its own sampling and noise, each run in a
            process of its own; runs that are finished are kept and not repeated

Writes <level>.json and page.html to --output. Its folder private/ holds token ids, labels and
predictions. Needs the extra: pip install "jaxdp-text[baseline]"
"""

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxdp.config import Config
from jaxdp.files import write_json
from jaxdp.peers import start, tables
from jaxdp.peers.job import SIDES
from jaxdp.progress import Display

from . import fail, numbers, require, table
from .define import Define

LEVELS = ("gradients", "trajectory", "runs")
DEFINE = Define()
_CONFIG = DEFINE.config()
_PLAIN = DEFINE.config("plain", "runs: a second configuration to compare.", required=False)
_LEVEL = DEFINE.enum("level", "gradients", LEVELS, "What to compare.")
_OUTPUT = DEFINE.string("output", None, "Folder; default: runs/compare_<config.run.name>.")
_REPORTS = DEFINE.integer("reports", 64, "gradients: reports in the batch.", lower_bound=1)
_STEPS = DEFINE.integer("steps", 10, "trajectory: steps.", lower_bound=1)
_SEEDS = DEFINE.integer("seeds", 3, "runs: seeds on each side.", lower_bound=1)
_EPSILONS = DEFINE.list("epsilons", [], "runs: targets; default: the configuration's own.")
_METHOD = DEFINE.enum("method", "hooks", ("hooks", "ghost"), "How Opacus clips.")
_PADDING = DEFINE.enum("padding", "dynamic", ("dynamic", "fixed"), "Of PyTorch's batches.")
_BATCH = DEFINE.integer(
    "physical_batch", 64, "Reports that PyTorch computes at once.", lower_bound=1
)


def main() -> None:
    require("baseline", "torch", "transformers", "peft", "opacus")
    console = Console()
    epsilons = numbers("epsilons", _EPSILONS.value) if _LEVEL.value == "runs" else []
    given = [config for config in (_CONFIG.value, _PLAIN.value) if config]
    configs = [own for config in given for own in at_epsilons(config.to_dict(), epsilons)]
    run = configs[0].path
    output = Path(_OUTPUT.value or run.with_name(f"compare_{run.name}"))
    output.mkdir(parents=True, exist_ok=True)
    result = _compare(configs, output, console)
    console.print(f"all numbers and plots: {output / 'page.html'}")
    if not result.get("passed", True):
        fail(f"the sides differ by more than {result['tolerance']:g}")


def at_epsilons(values: dict[str, Any], epsilons: Sequence[float]) -> list[Config]:
    """The configuration at each epsilon, by which a recipe chooses; without any, as it is."""
    privacy = values["privacy"]
    return [
        Config.from_dict(values | {"privacy": privacy | {"epsilon": epsilon}})
        for epsilon in epsilons or [privacy["epsilon"]]
    ]


def _compare(configs: Sequence[Config], output: Path, console: Console) -> dict[str, Any]:
    """Runs the level, prints it, writes its file and the page."""
    # The extra may be missing where only --help is asked for.
    from jaxdp.peers import comparison
    from jaxdp.report.comparison import write_page

    level = _LEVEL.value
    options = {"method": _METHOD.value, "padding": _PADDING.value, "physical_batch": _BATCH.value}
    with Display(console, "comparison", status="working"):
        if level == "runs":
            jobs = start.find_jobs(configs, _SEEDS.value, output / "private", console.print)
            result = comparison.compare_runs(jobs, options, console.print)
        else:
            with tempfile.TemporaryDirectory() as folder:
                job = start.private_job(configs[0], Path(folder))
                count = _REPORTS.value if level == "gradients" else _STEPS.value
                result = comparison.compare(job, level, count, options)
    for name, settings in result["settings"].items():
        rows = tables.settings_rows(settings)
        console.print(table(f"settings, {name}", ("", *SIDES, ""), rows))
    console.print(table(level, *tables.result_table(level, result)))
    result["command"] = shlex.join(["python", *sys.argv])
    write_json(output / f"{level}.json", result)
    files = {level: output / f"{level}.json" for level in LEVELS}
    write_page(
        output / "page.html",
        {level: json.loads(f.read_text("utf-8")) for level, f in files.items() if f.exists()},
    )
    return result
