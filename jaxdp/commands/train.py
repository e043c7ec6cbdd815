# SPDX-License-Identifier: Apache-2.0
"""Fine-tunes a report classifier with differential privacy.

    jaxdp train --config openi_eps8 --plan
    jaxdp train --config openi_eps8
    jaxdp train --config openi_eps8 --config.privacy.epsilon=3
    jaxdp train --config openi_eps8 --resume

--config is a Python file with get_config(), or the name of a configuration that is shipped. Every
setting of jaxdp/config.py can be given as --config.section.field=value; --plan shows what that
comes to, and what is wrong with it, and reads no report. Results go to
<config.run.dir>/<config.run.name>: release/ may be shared under its statement, private/ must not
leave.

All devices share the work. Several processes, on one host or more, train together where srun
starts them, or JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID are set.
"""

import sys

from rich.console import Console
from rich.markup import escape

from jaxdp.config import Config
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import Monitor, SilentMonitor
from jaxdp.run.preview import plan_lines, problems, release_lines
from jaxdp.run.processes import is_first, join
from jaxdp.run.train import Interrupted, train
from jaxdp.sweep.estimate import run_cost
from jaxdp.sweep.progress import clock
from jaxdp.training.stages import plan_run

from .define import Define

DEFINE = Define()
_CONFIG = DEFINE.config()
_RESUME = DEFINE.bool("resume", False, "Continue a run that was stopped.")
_PLAN = DEFINE.bool("plan", False, "Print what the run would do, cost and release; no more.")


def show_plan(config: Config, console: Console) -> None:
    """All that is known of a run before it reads anything."""
    plan = plan_run(config)
    Monitor(console).planned(plan_lines(config, plan))
    lines = release_lines(config, plan)
    if cost := run_cost(config):
        lines.append(f"time here: roughly {clock(sum(cost))}, right to a factor of three")
    lines += [
        f"[yellow]wrong, or missing here:[/] {escape(problem)}" for problem in problems(config)
    ]
    for line in lines:
        console.print(f"          {line}", highlight=False, soft_wrap=True)


def main() -> None:
    try:
        config = Config.from_dict(_CONFIG.value.to_dict())
        if _PLAN.value:
            show_plan(config, Console())
            return
        join()
        monitor = Monitor(Console()) if is_first() else SilentMonitor()
        with Interrupt() as interrupt:
            train(config, resume=_RESUME.value, interrupt=interrupt, monitor=monitor)
    except Interrupted as stop:
        spent = "" if stop.epsilon is None else f"; the steps taken cost epsilon {stop.epsilon:.4g}"
        if is_first():
            print(
                f"stopped and saved after step {stop.position.step}{spent}; go on with the same "
                "command and --resume",
                file=sys.stderr,
            )
        sys.exit(128 + interrupt.received)
