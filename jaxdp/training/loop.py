# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.data.dataset import ReportDataset
from jaxdp.files import write_json

from . import processes
from .checkpoint import Checkpoints, DamagedCheckpoint
from .course import Course, Interrupted, train_stages
from .finish import finish
from .interrupt import Interrupt
from .mesh import make_mesh
from .monitor import Monitor, SilentMonitor
from .patients import patient_epsilons
from .randomness import RunSecret
from .run_directory import RunDirectory, RunError
from .setup import Inputs, load_inputs, test_probabilities
from .stages import RunPlan, plan_run

__all__ = ["Interrupted", "train"]


def train(
    config: Config,
    *,
    resume: bool,
    interrupt: Interrupt,
    monitor: Monitor | SilentMonitor,
    sampling_root: bytes | None = None,
    dataset: ReportDataset | None = None,
) -> dict[str, Any]:
    """Runs the configuration to the end and writes the run directory (design: release contract).

    Guarantee: what `release/` holds is the output of exactly the mechanisms in its statement. A run
    that was stopped anywhere, even by SIGKILL, continues with the same units and noise, and ends
    with the same adapter, bit for bit on the same machines and versions. Several processes train
    together, see `processes`.

    Args:
        config: of the run.
        resume: continue a run that has started.
        interrupt: asked between steps.
        monitor: told what happens.
        sampling_root: for a member of a sweep that shares its samples, see `RunSecret`.
        dataset: reports that are in memory already, instead of those that config.data names. It may
            lack a validation or a test split, and then nothing is evaluated there.

    Returns:
        The statement ("privacy") and the test metrics ("metrics"), whose "test" is None without a
        test split.

    Raises:
        ConfigError, DataError, WeightsError, RunError, LedgerError: input that cannot be used, or a
            run that would overdraw its budget.
        Interrupted: stopped by a signal, saved.
        FloatingPointError: the adapter is no longer finite.
    """
    plan = plan_run(config)
    mesh = make_mesh(config.run.devices)
    monitor.planned(config, plan)
    run = processes.first(lambda: _open(config, resume))
    try:
        inputs = processes.together(lambda: load_inputs(config, dataset))
        _require_same_inputs(config, plan, inputs)
        monitor.loaded(config, inputs)
        if patients := patient_epsilons(config, plan, inputs):
            processes.first(lambda: write_json(run.private / "patients.json", patients))
            monitor.patients(patients)
        secret = _secret(run, inputs, sampling_root)
        checkpoints = processes.first(
            lambda: Checkpoints(run.checkpoints, config.run.keep_checkpoints)
        )
        stop = processes.SharedInterrupt(interrupt, mesh)
        course = Course(config, plan, secret, run, monitor)
        while True:
            try:
                models, weights = train_stages(
                    [course], inputs, checkpoints, stop, lambda: _begin(course, inputs)
                )
                break
            except DamagedCheckpoint as damage:
                # The one before, or none at all, leads to the same result.
                processes.first(lambda damage=damage: checkpoints.set_aside(damage.position))
                monitor.set_aside(damage)
        probabilities = None
        if "test" in inputs.tokens:
            (probabilities,) = test_probabilities(config, models, inputs, mesh, monitor.testing)
        return finish(course, inputs, *models, weights, probabilities)
    finally:
        if run is not None:
            run.close()


def _open(config: Config, resume: bool) -> RunDirectory:
    """The run's directory, if there is something left to do in it."""
    run = RunDirectory(config, resume=resume)
    if run.finished:
        run.close()
        raise RunError(f"{run.path} is finished already; its results are in {run.release}")
    return run


def _secret(run: RunDirectory | None, inputs: Inputs, sampling_root: bytes | None) -> RunSecret:
    """Of process 0, on every process: one run has one secret."""
    records = itertools.chain(inputs.training_records(), inputs.grouping())
    own = processes.first(lambda: run.secret(records, sampling_root))
    roots = (bytes(32), bytes(32)) if own is None else (own.root, own.sampling_root or own.root)
    shared = processes.from_first([np.frombuffer(root, np.uint8) for root in roots])
    return RunSecret(*(root.tobytes() for root in shared))


def _require_same_inputs(config: Config, plan: RunPlan, inputs: Inputs) -> None:
    """RunError unless all processes train the same way on the same; paths may differ."""
    settings = dataclasses.replace(
        config, data=dataclasses.replace(config.data, root=None, cache=None)
    )
    weights = inputs.backbone.directory.glob("*.safetensors")
    rows = [*inputs.tokens.values(), *inputs.labels.values()]
    processes.require_same(
        {
            "settings": [repr((settings, plan)).encode()],
            "reports": (np.asarray(x).tobytes() for x in jax.tree.leaves(rows)),
            "privacy units": inputs.grouping(),
            "frozen weights": (file.read_bytes() for file in sorted(weights)),
        }
    )


def _begin(course: Course, inputs: Inputs) -> None:
    """Keeps the secret, and enters the run in the ledger, if there is one: nothing is done with
    the reports before."""
    new = course.run.start()
    privacy = course.config.privacy
    if privacy.ledger is None or not privacy.private:
        return
    ledger = dp.Ledger(Path(privacy.ledger))
    budget = None if privacy.total_budget is None else (privacy.total_budget, privacy.delta)
    try:
        ledger.plan(
            ledger.fingerprint(inputs.training_records()),
            course.secret.public_id(),
            course.plan.mechanisms(),
            total_budget=budget,
        )
    except dp.LedgerError:
        if new:
            course.run.unstart()
        raise
