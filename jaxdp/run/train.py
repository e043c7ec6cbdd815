# SPDX-License-Identifier: Apache-2.0
"""A whole run, in order: plan, load, train stage by stage, evaluate, release."""

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.data.dataset import ReportDataset
from jaxdp.files import write_json
from jaxdp.training.mesh import make_mesh
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs, load_inputs, test_probabilities
from jaxdp.training.stages import RunPlan, plan_run

from . import processes
from .checkpoint import Checkpoints, DamagedCheckpoint
from .directory import RunDirectory, RunError
from .finish import finish
from .interrupt import Interrupt
from .monitor import Monitor, SilentMonitor
from .patients import patient_epsilons
from .stage_loop import Interrupted, Run, train_stages

__all__ = ["Interrupted", "train", "train_members"]


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
    (result,) = _train(
        [config], [monitor], interrupt, sampling_root, resume=resume, dataset=dataset
    )
    return result


def train_members(
    configs: Sequence[Config],
    *,
    folder: Path,
    interrupt: Interrupt,
    monitors: Sequence[Monitor | SilentMonitor],
    sampling_root: bytes,
) -> None:
    """Trains members of a group in one program, and finishes those that are not yet; each ends with
    the run directory that it would have alone.

    Guarantee: each is trained by exactly the mechanisms that `train` would use, with its own secret
    and the group's samples, and ends with the same adapter up to the rounding of sums. One that was
    finished takes part, and nothing of it is written again. What was stopped anywhere, even by
    SIGKILL, continues with the same units and noise.

    Args:
        configs: the members', which differ in numbers alone: all of them, also when some are
            finished, and in the same order as before. All private, or none; no secure noise.
        folder: for the checkpoints, each of all members, or of none; private.
        interrupt: asked between steps.
        monitors: of the members, told what happens.
        sampling_root: of the group, see `RunSecret`.

    Raises:
        CannotShare: see `members.share_frozen`; nothing was done with the reports.
        Others: see `train`.
    """
    if jax.process_count() > 1:
        raise RunError("members are trained together by one process")
    _train(configs, monitors, interrupt, sampling_root, resume=True, folder=folder)


def _train(
    configs: Sequence[Config],
    monitors: Sequence[Monitor | SilentMonitor],
    interrupt: Interrupt,
    sampling_root: bytes | None,
    *,
    resume: bool,
    folder: Path | None = None,
    dataset: ReportDataset | None = None,
) -> list[dict[str, Any]]:
    """One run, or with a `folder` for the checkpoints of all those of several; what `train` gives
    back, of each that was not finished."""
    config = configs[0]
    plans = [plan_run(each) for each in configs]
    mesh = make_mesh(config.run.devices, len(configs))
    for each, plan, monitor in zip(configs, plans, monitors, strict=True):
        monitor.planned(each, plan)
    with contextlib.ExitStack() as held:
        directories = processes.first(
            lambda: [_open(each, resume, folder, held) for each in configs]
        ) or [None] * len(configs)
        inputs = processes.on_all(lambda: load_inputs(config, dataset))
        _require_same_inputs(config, plans[0], inputs)
        checkpoints = None
        if folder is not None:
            checkpoints = Checkpoints(folder, config.run.keep_checkpoints)
            if checkpoints.furthest() is not None:
                for directory in directories:
                    directory.require_started()
        runs = []
        for each, plan, directory, monitor in zip(
            configs, plans, directories, monitors, strict=True
        ):
            monitor.loaded(each, inputs)
            if patients := patient_epsilons(each, plan, inputs):
                _write_patients(directory, patients)
                monitor.patients(patients)
            secret = _secret(directory, inputs, sampling_root)
            runs.append(Run(each, plan, secret, directory, monitor))
        checkpoints = checkpoints or processes.first(
            lambda: Checkpoints(directories[0].checkpoints, config.run.keep_checkpoints)
        )
        stop = processes.SharedInterrupt(interrupt, mesh)
        while True:
            try:
                models, weights = train_stages(
                    runs, inputs, checkpoints, stop, lambda: [_begin(run, inputs) for run in runs]
                )
                break
            except DamagedCheckpoint as damage:
                # The one before, or none at all, leads to the same result.
                processes.first(lambda damage=damage: checkpoints.set_aside(damage.position))
                for monitor in monitors:
                    monitor.set_aside(damage)
        predicted = [None] * len(runs)
        if "test" in inputs.tokens:
            predicted = test_probabilities(config, models, inputs, mesh, monitors[0].testing)
        return [
            finish(run, inputs, model, weights, probabilities)
            for run, model, probabilities in zip(runs, models, predicted, strict=True)
            if run.directory is None or not run.directory.finished
        ]


def _open(
    config: Config, resume: bool, folder: Path | None, held: contextlib.ExitStack
) -> RunDirectory:
    """The run's directory, until `held` ends; one that is finished only of several runs."""
    directory = RunDirectory(config, resume=resume)
    held.callback(directory.close)
    if directory.finished and folder is None:
        raise RunError(
            f"{directory.path} is finished already; its results are in {directory.release}"
        )
    return directory


def _write_patients(directory: RunDirectory | None, patients: dict[str, Any]) -> None:
    processes.first(lambda: write_json(directory.private / "patients.json", patients))


def _secret(
    directory: RunDirectory | None, inputs: Inputs, sampling_root: bytes | None
) -> RunSecret:
    """Of process 0, on every process: one run has one secret."""
    records = itertools.chain(inputs.training_records(), inputs.grouping())
    own = processes.first(lambda: directory.secret(records, sampling_root))
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


def _begin(run: Run, inputs: Inputs) -> None:
    """Keeps the secret, and enters the run in the ledger, if there is one: nothing is done with
    the reports before."""
    new = run.directory.start()
    privacy = run.config.privacy
    if privacy.ledger is None or not privacy.private:
        return
    ledger = dp.Ledger(Path(privacy.ledger))
    budget = None if privacy.total_budget is None else (privacy.total_budget, privacy.delta)
    try:
        ledger.plan(
            ledger.fingerprint(inputs.training_records()),
            run.secret.public_id(),
            run.plan.mechanisms(),
            total_budget=budget,
        )
    except dp.LedgerError:
        if new:
            run.directory.unstart()
        raise
