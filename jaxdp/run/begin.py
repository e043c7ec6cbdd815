# SPDX-License-Identifier: Apache-2.0
"""What a run needs before its first step: its secret, the same inputs everywhere, the ledger."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxdp import dp
from jaxdp.data.store import key_of
from jaxdp.data.units import reports_per_patient
from jaxdp.files import write_json
from jaxdp.models.classifier import ReportClassifier
from jaxdp.training.randomness import RunSecret
from jaxdp.training.setup import Inputs
from jaxdp.training.stages import RunPlan

from . import processes
from .directory import RunDirectory
from .monitor import Monitor, SilentMonitor


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """One run that a program trains, alone or as a member of a sweep."""

    name: str
    plan: RunPlan  # members differ in its numbers alone
    secret: RunSecret  # where its randomness comes from
    directory: RunDirectory | None  # None on every process but the first
    monitor: Monitor | SilentMonitor  # told what happens to it


def shared_secret(new: RunSecret, directory: RunDirectory | None, inputs: Inputs) -> RunSecret:
    """`RunDirectory.secret` of process 0, on every process: one run has one secret."""
    records = itertools.chain(inputs.training_records(), inputs.grouping())
    own = processes.first(lambda: directory.secret(new, records))
    roots = (bytes(32), bytes(32)) if own is None else (own.root, own.sampling_root or own.root)
    shared = processes.from_first([np.frombuffer(root, np.uint8) for root in roots])
    return RunSecret(*(root.tobytes() for root in shared))


def require_same_inputs(settings: Any, inputs: Inputs) -> None:
    """RunError unless all processes train by the same settings, and on the same."""
    weights = inputs.backbone.directory.glob("*.safetensors")
    rows = [*inputs.tokens.values(), *inputs.labels.values()]
    processes.require_same(
        {
            "settings": [repr(settings).encode()],
            "reports": (np.asarray(x).tobytes() for x in jax.tree.leaves(rows)),
            "privacy units": inputs.grouping(),
            "frozen weights": (file.read_bytes() for file in sorted(weights)),
        }
    )


def patient_epsilons(plan: RunPlan, inputs: Inputs) -> dict[str, Any] | None:
    """Reports and epsilon of the training patient with most reports, and of the median one.

    JSON-ready; epsilon is None where none is claimed. The numbers of reports are exact counts of
    private data: they belong under private/, and release/ has a table of public numbers instead.
    None where there is nothing to say: no privacy, patients as the unit or not known, or one report
    of each.
    """
    mechanisms = list(plan.mechanisms().values())
    if not mechanisms or inputs.units.unit != "report" or not inputs.dataset.patients_known:
        return None
    sizes = reports_per_patient(inputs.dataset.subset("train"), inputs.units)
    if sizes[0] == 1:
        return None
    epsilons = [dp.group_epsilon(mechanisms, plan.delta, size) for size in sizes]
    return {
        who: {"reports": size, "epsilon": epsilon if math.isfinite(epsilon) else None}
        for who, size, epsilon in zip(("largest", "median"), sizes, epsilons, strict=True)
    }


def tell_patients(run: Run, inputs: Inputs) -> None:
    """Keeps and shows what the guarantee means to patients with several reports, if any has."""
    patients = patient_epsilons(run.plan, inputs)
    if patients:
        processes.first(lambda: write_json(run.directory.private / "patients.json", patients))
        run.monitor.patients(patients)


def begin(
    run: Run,
    model: ReportClassifier,
    inputs: Inputs,
    ledger: dp.Ledger | None,
    total_budget: float | None = None,
) -> None:
    """Keeps the secret, and enters the run in the ledger: nothing is done with the reports before.

    Args:
        model: to be trained. What is frozen of it is in no checkpoint, and must be the same when
            the run goes on; so must the noise, which is calibrated anew.
        ledger: None records nothing, as of a run without privacy.
        total_budget: epsilon that all runs in the ledger may cost together; None is no limit.

    Raises:
        RunError: the run had started with another model, or with other noise.
        LedgerError: see `dp.Ledger.plan`.
    """
    mechanisms = run.plan.mechanisms()
    weights = map(np.asarray, jax.tree.leaves(nnx.state(model, nnx.Param)))
    new = run.directory.start(
        {
            "weights or public start": key_of("", weights),
            "noise": {name: dataclasses.asdict(m) for name, m in mechanisms.items()},
        }
    )
    if ledger is None or not mechanisms:
        return
    budget = None if total_budget is None else (total_budget, run.plan.delta)
    try:
        data = ledger.fingerprint(inputs.training_records())
        ledger.plan(data, run.secret.public_id(), mechanisms, total_budget=budget)
    except dp.LedgerError:
        if new:
            run.directory.unstart()
        raise
