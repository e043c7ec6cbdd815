# SPDX-License-Identifier: Apache-2.0
"""Training what a sweep still lacks: here, or as jobs of a scheduler."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jaxdp.config import Config
from jaxdp.run.directory import RunError
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.train import Interrupted, train, train_members
from jaxdp.runtime import prepare
from jaxdp.training.members import CannotShare

from .directory import (
    log_file,
    read_description,
    read_members,
    require_same,
    sampling_root,
)
from .history import HistoryMonitor
from .members import Member

EXECUTORS = ("inline", "local", "slurm")


def finished(member: Member) -> bool:
    """Whether a member is trained and evaluated.

    Raises:
        RunError: it is, but with other settings; the message names them.
    """
    if not (member.path / "metrics.json").exists():
        return False
    try:
        text = (member.path / "config.json").read_text(encoding="utf-8")
        started = Config.from_dict(json.loads(text))
    except (OSError, ValueError):
        raise RunError(f"{member.path / 'config.json'} cannot be read") from None
    require_same(member.path, started, member.config)
    return True


def run_group(folder: Path, index: int, interrupt: Interrupt, *, one_by_one: bool = False) -> None:
    """Trains what a group lacks in this process; what was interrupted is resumed. Each member is
    trained as `run.train.train` does, with the group's samples: see `programs`.

    Raises:
        Interrupted: asked to stop; everything is saved.
        Others: see `train`.
    """
    description, members = read_description(folder), read_members(folder)
    group = [members[name] for name in description["groups"][index]["members"]]
    root = sampling_root(folder, index) if description["share_sampling"] else None
    alone = one_by_one or root is None
    for number, program in enumerate(programs(group)):
        lacking = [member for member in program if not finished(member)]
        if not lacking:
            continue
        # What was begun one by one goes on like that.
        begun = any((m.path / "private" / "checkpoints").exists() for m in lacking)
        if len(program) > 1 and not alone and not begun:
            states = folder / "private" / f"group{index}-{number}"
            try:
                _train_program(program, states, interrupt, root)
                continue
            except CannotShare:
                pass
        for member in lacking:
            with log_file(member).open("a", encoding="utf-8") as log:
                train(
                    member.config,
                    resume=True,
                    interrupt=interrupt,
                    monitor=HistoryMonitor(member.path / "private", log),
                    sampling_root=root,
                )


def programs(group: Sequence[Member]) -> list[list[Member]]:
    """The members of a group that one program can train: private ones, and the others, which draw
    with other probabilities and clip nothing. Secure noise is drawn for one member at a time."""
    parts = [[m for m in group if m.config.privacy.private == p] for p in (True, False)]
    if any(member.config.privacy.secure_noise for member in group):
        parts = [[member] for member in group]
    return [part for part in parts if part]


def _train_program(
    program: Sequence[Member], states: Path, interrupt: Interrupt, sampling_root: bytes
) -> None:
    with contextlib.ExitStack() as logs:
        monitors = []
        for member in program:
            if finished(member):
                monitors.append(SilentMonitor())
                continue
            log = logs.enter_context(log_file(member).open("a", encoding="utf-8"))
            monitors.append(HistoryMonitor(member.path / "private", log, len(program)))
        train_members(
            [member.config for member in program],
            folder=states,
            interrupt=interrupt,
            monitors=monitors,
            sampling_root=sampling_root,
        )


def run_job(folder: str, index: int) -> bool:
    """`run_group` as a job of its own process: False if it was asked to stop."""
    prepare()
    try:
        with Interrupt() as interrupt:
            run_group(Path(folder), index, interrupt)
    except Interrupted:
        return False
    return True


def submit(
    folder: Path, indices: Sequence[int], executor: str, options: dict[str, str]
) -> list["submitit.Job"]:  # noqa: F821
    """One job for each group.

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
    logs = folder / "private" / "jobs"
    queue = submitit.AutoExecutor(folder=str(logs), cluster=executor)
    # Jobs inherit the environment.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        # submitit's own limit is 5 minutes.
        settings = {"timeout_min": "1440"} | options
        queue.update_parameters(name="jaxdp-sweep", **{k: _number(v) for k, v in settings.items()})
    except (NameError, TypeError, ValueError) as error:
        raise RunError(f"--executor_options: {error}") from None
    return [queue.submit(run_job, str(folder), index) for index in indices]


def _number(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def wait(jobs: Sequence, interrupt: Interrupt) -> list[str]:
    """Waits for jobs; what went wrong with each that failed.

    Where this process is asked to stop, jobs are cancelled. A scheduler gives them time to save;
    local ones have a second, and go on from their last checkpoint next time.
    """
    stopping = False
    while not all(job.done() for job in jobs):
        if interrupt.received is not None and not stopping:
            stopping = True
            for job in jobs:
                job.cancel(check=False)
        time.sleep(1)
    errors = []
    for job in jobs:
        error = None if stopping else job.exception()
        if error is not None:
            errors.append(f"job {job.job_id}: {str(error).strip().splitlines()[-1]}")
    return errors
