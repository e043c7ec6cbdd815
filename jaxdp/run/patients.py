# SPDX-License-Identifier: Apache-2.0
"""What a guarantee per report means to the patients who have several: for whoever trains."""

import math
from typing import Any

from jaxdp import dp
from jaxdp.config import Config
from jaxdp.data.units import reports_per_patient
from jaxdp.training.setup import Inputs
from jaxdp.training.stages import RunPlan


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
