# SPDX-License-Identifier: Apache-2.0
"""What a run needs before its first step: directory, secret, the same inputs everywhere, ledger."""

import contextlib
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.data.units import reports_per_patient
from jaxdp.files import write_json
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs
from jaxdp.training.stages import RunPlan

from . import processes
from .checkpoint import Position
from .directory import RunDirectory, RunError
from .monitor import Monitor, SilentMonitor


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One run that a program trains, alone or as a member of a sweep.

    Attributes:
        config, plan: of the run; members differ in numbers alone.
        secret: where its randomness comes from.
        directory: None on every process but the first.
        monitor: told what happens to it.
    """

    config: Config
    plan: RunPlan
    secret: RunSecret
    directory: RunDirectory | None
    monitor: Monitor | SilentMonitor

    def epsilon(self, done: Position) -> float | None:
        """Of the steps taken so far; None without privacy."""
        mechanisms = self.plan.mechanisms(done.stage, done.step)
        if not mechanisms:
            return None
        return _epsilon(tuple(mechanisms.values()), self.config.privacy.delta)


@functools.lru_cache(maxsize=64)
def _epsilon(mechanisms: tuple[dp.SubsampledGaussian, ...], delta: float) -> float:
    """Members that differ in their seeds ask for the same."""
    return dp.epsilon_pld(list(mechanisms), delta)


def open_directory(
    config: Config, held: contextlib.ExitStack, *, resume: bool, finished_too: bool
) -> RunDirectory:
    """The run's directory, until `held` ends; RunError if it is finished, unless `finished_too`."""
    directory = RunDirectory(config, resume=resume)
    held.callback(directory.close)
    if directory.finished and not finished_too:
        raise RunError(
            f"{directory.path} is finished already; its results are in {directory.release}"
        )
    return directory


def shared_secret(
    directory: RunDirectory | None, inputs: Inputs, sampling_root: bytes | None
) -> RunSecret:
    """Of process 0, on every process: one run has one secret."""
    records = itertools.chain(inputs.training_records(), inputs.grouping())
    own = processes.first(lambda: directory.secret(records, sampling_root))
    roots = (bytes(32), bytes(32)) if own is None else (own.root, own.sampling_root or own.root)
    shared = processes.from_first([np.frombuffer(root, np.uint8) for root in roots])
    return RunSecret(*(root.tobytes() for root in shared))


def require_same_inputs(config: Config, plan: RunPlan, inputs: Inputs) -> None:
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


def patient_epsilons(config: Config, plan: RunPlan, inputs: Inputs) -> dict[str, Any] | None:
    """Reports and epsilon of the training patient with most reports, and of the median one.

    JSON-ready; epsilon is None where none is claimed. The numbers of reports are exact counts of
    private data: they belong under private/, and release/ has a table of public numbers instead.
    None where there is nothing to say: no privacy, patients as the unit or not known, or one report
    of each.
    """
    mechanisms, delta = list(plan.mechanisms().values()), config.privacy.delta
    if not mechanisms or config.privacy.unit != "report" or not inputs.dataset.patients_known:
        return None
    sizes = reports_per_patient(inputs.dataset.subset("train"), inputs.units)
    if sizes[0] == 1:
        return None
    epsilons = [dp.group_epsilon(mechanisms, delta, size) for size in sizes]
    return {
        who: {"reports": size, "epsilon": epsilon if math.isfinite(epsilon) else None}
        for who, size, epsilon in zip(("largest", "median"), sizes, epsilons, strict=True)
    }


def tell_patients(run: Run, inputs: Inputs) -> None:
    """Keeps and shows what the guarantee means to patients with several reports, if any has."""
    patients = patient_epsilons(run.config, run.plan, inputs)
    if patients:
        processes.first(lambda: write_json(run.directory.private / "patients.json", patients))
        run.monitor.patients(patients)


def begin(run: Run, inputs: Inputs) -> None:
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
