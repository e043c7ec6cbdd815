# SPDX-License-Identifier: Apache-2.0
"""Training what a sweep still lacks: here, or as jobs of a scheduler."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdp.run.directory import RunError, require_same, stored_config
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.train import Interrupted, train, train_members
from jaxdp.runtime import prepare
from jaxdp.training.members import CannotShare

from .directory import read_begun, sampling_root
from .history import HistoryMonitor
from .members import Member, programs

EXECUTORS = ("inline", "local", "slurm")


def finished(member: Member) -> bool:
    """Whether a member is trained and evaluated.

    Raises:
        RunError: it is, but with other settings; the message names them.
    """
    if not (member.path / "metrics.json").exists():
        return False
    require_same(member.path, stored_config(member.path), member.config)
    return True


def run_group(folder: Path, index: int, interrupt: Interrupt) -> None:
    """Trains what a group lacks in this process; what was interrupted is resumed. Each member is
    trained as `run.train.train` does, with the group's samples: see `members.programs`.

    Raises:
        Interrupted: asked to stop; everything is saved.
        Others: see `train`.
    """
    description, members = read_begun(folder)
    group = [members[name] for name in description["groups"][index]["members"]]
    root = sampling_root(folder, index) if description["share_sampling"] else None
    with contextlib.ExitStack() as logs:

        def monitor(member: Member, sharing: int = 1) -> HistoryMonitor:
            private = member.path / "private"
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = logs.enter_context((private / "log.txt").open("a", encoding="utf-8"))
            return HistoryMonitor(private, log, sharing)

        for number, program in enumerate(programs(group, description["share_sampling"])):
            lacking = [member for member in program if not finished(member)]
            # What was begun one by one goes on like that.
            begun = any((m.path / "private" / "checkpoints").exists() for m in lacking)
            if lacking and len(program) > 1 and not begun:
                monitors = [
                    monitor(member, len(program)) if member in lacking else SilentMonitor()
                    for member in program
                ]
                with contextlib.suppress(CannotShare):
                    train_members(
                        [member.config for member in program],
                        monitors,
                        interrupt,
                        root,
                        folder=folder / "private" / f"group{index}-{number}",
                    )
                    continue
            for member in lacking:
                train(
                    member.config,
                    resume=True,
                    interrupt=interrupt,
                    monitor=monitor(member),
                    sampling_root=root,
                )


def run_jobs(
    folder: Path,
    indices: Sequence[int],
    executor: str,
    options: dict[str, str],
    interrupt: Interrupt,
) -> list[str]:
    """Trains each group in a job of its own, and waits; what went wrong with each that failed.

    Where this process is asked to stop, jobs are cancelled. A scheduler gives them time to save;
    local ones have a second, and go on from their last checkpoint next time.

    Args:
        executor: "local" runs them as processes of this machine, all at once; "slurm" queues them.
        options: of the scheduler, as `submitit` calls them: timeout_min, slurm_partition, ...

    Raises:
        RunError: submitit is not installed, or does not know an option.
    """
    try:
        import submitit  # an extra
    except ImportError:
        raise RunError("--executor needs submitit: pip install 'jaxdp-text[cluster]'") from None
    queue = submitit.AutoExecutor(folder=str(folder / "private" / "jobs"), cluster=executor)
    # Jobs inherit the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    settings = {"name": "jaxdp-sweep", "timeout_min": 1440}  # submitit's own: 5
    settings |= {name: int(text) if text.isdigit() else text for name, text in options.items()}
    try:
        queue.update_parameters(**settings)
    except (NameError, TypeError, ValueError) as error:
        raise RunError(f"--executor_options: {error}") from None
    jobs = [queue.submit(_job, str(folder), index) for index in indices]
    stopping = False
    while not all(job.done() for job in jobs):
        if interrupt.received is not None and not stopping:
            stopping = True
            for job in jobs:
                job.cancel(check=False)
        time.sleep(1)
    errors = {job.job_id: None if stopping else job.exception() for job in jobs}
    said = {i: str(e).strip() or type(e).__name__ for i, e in errors.items() if e}
    return [f"job {i}: {text.splitlines()[-1]}" for i, text in said.items()]


def _job(folder: str, index: int) -> None:
    """`run_group` in a process of its own."""
    prepare()
    with contextlib.suppress(Interrupted), Interrupt() as interrupt:
        run_group(Path(folder), index, interrupt)
