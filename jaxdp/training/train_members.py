# SPDX-License-Identifier: Apache-2.0
"""Members of a sweep as one program; each ends with the run directory that it would have alone."""

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxdp.config import Config
from jaxdp.files import write_json

from .checkpoint import Checkpoints, DamagedCheckpoint
from .course import Course, train_stages
from .finish import finish
from .interrupt import Interrupt
from .mesh import make_mesh
from .monitor import Monitor, SilentMonitor
from .patients import patient_epsilons
from .processes import SharedInterrupt
from .run_directory import RunDirectory, RunError
from .setup import load_inputs, test_probabilities
from .stages import plan_run


def train_members(
    configs: Sequence[Config],
    *,
    folder: Path,
    interrupt: Interrupt,
    monitors: Sequence[Monitor | SilentMonitor],
    sampling_root: bytes,
) -> None:
    """Trains members of a group in one program, and finishes those that are not yet.

    Guarantee: each is trained by exactly the mechanisms that `loop.train` would use, with its own
    secret and the group's samples, and ends with the same adapter up to the rounding of sums. One
    that was finished takes part, and nothing of it is written again. What was stopped anywhere,
    even by SIGKILL, continues with the same units and noise.

    Args:
        configs: the members', which differ in numbers alone: all of them, also when some are
            finished, and in the same order as before. All private, or none; no secure noise.
        folder: for the checkpoints, each of all members, or of none; private.
        interrupt: asked between steps.
        monitors: of the members, told what happens.
        sampling_root: of the group, see `RunSecret`.

    Raises:
        CannotShare: see `members.share_frozen`; nothing was done with the reports.
        Others: see `loop.train`.
    """
    if jax.process_count() > 1:
        raise RunError("members are trained together by one process")
    config = configs[0]
    plans = [plan_run(each) for each in configs]
    for each, plan, monitor in zip(configs, plans, monitors, strict=True):
        monitor.planned(each, plan)
    with contextlib.ExitStack() as held:
        runs = [RunDirectory(each, resume=True) for each in configs]
        for run in runs:
            held.callback(run.close)
        checkpoints = Checkpoints(folder, config.run.keep_checkpoints)
        if checkpoints.furthest() is not None:
            for run in runs:
                run.require_started()
        inputs = load_inputs(config)
        courses = []
        for each, plan, run, monitor in zip(configs, plans, runs, monitors, strict=True):
            monitor.loaded(each, inputs)
            if patients := patient_epsilons(each, plan, inputs):
                write_json(run.private / "patients.json", patients)
                monitor.patients(patients)
            records = itertools.chain(inputs.training_records(), inputs.grouping())
            secret = run.secret(records, sampling_root)
            courses.append(Course(each, plan, secret, run, monitor))
        mesh = make_mesh(config.run.devices, len(courses))
        stop = SharedInterrupt(interrupt, mesh)

        def start() -> None:
            for run in runs:
                run.start()

        while True:
            try:
                models, weights = train_stages(courses, inputs, checkpoints, stop, start)
                break
            except DamagedCheckpoint as damage:
                checkpoints.set_aside(damage.position)
                for monitor in monitors:
                    monitor.set_aside(damage)
        predicted = test_probabilities(config, models, inputs, mesh, monitors[0].testing)
        for course, model, probabilities in zip(courses, models, predicted, strict=True):
            if not course.run.finished:
                finish(course, inputs, model, weights, probabilities)
