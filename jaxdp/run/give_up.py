# SPDX-License-Identifier: Apache-2.0
"""Giving a run up: the ledger then counts the steps it took instead of those it planned."""

import contextlib
from pathlib import Path

from jaxdp import dp
from jaxdp.training.stages import plan_run

from .checkpoint import Position, furthest
from .directory import RunDirectory, RunError, read_secret, stored_config


def give_up(path: Path, ledger: dp.Ledger) -> Position | None:
    """Gives the unfinished run at `path` up where it got, and returns that; None: no step taken.

    Safe, because a step is saved before anyone sees a result of it, so nothing later than the
    furthest checkpoint has left the process; because nobody trains meanwhile (lock); and because
    going on after all is a plan again, which counts in full and must fit the budget.

    Raises:
        RunError: no run is there, or it is finished, or in use.
        ConfigError, LedgerError: the run is not in the ledger, or not with these settings.
    """
    config = stored_config(path)
    with contextlib.closing(RunDirectory(config, resume=True)) as run:
        if run.finished or not run.started:
            raise RunError(f"{path}: only a run that was started and not finished can be given up")
        run_id = read_secret(run.private)[0].public_id()
        data = next((data for data, runs in ledger.runs().items() if run_id in runs), None)
        if data is None:
            raise dp.LedgerError(f"{path} is not in {ledger.path}")
        position = furthest(run.checkpoints)
        if position is None and (run.private / "tensorboard").exists():
            raise RunError(f"{path}: its checkpoints are gone, so it counts in full")
        ledger.give_up(data, run_id, plan_run(config).mechanisms(*position) if position else {})
        return position
