# SPDX-License-Identifier: Apache-2.0
"""What those who train are told about patients with several reports."""

import types

import numpy as np
import pytest
from helpers_data import make_dataset
from helpers_training import smoke_config

from jaxdp import dp
from jaxdp.data.units import PrivacyUnits
from jaxdp.run.begin import patient_epsilons
from jaxdp.training.stages import plan_run


def told(workspace, patients, known=True, **changes):
    config = smoke_config(workspace, **changes)
    data = make_dataset(patients, patients_known=known)
    units = PrivacyUnits.of(data, config.privacy.unit)
    inputs = types.SimpleNamespace(dataset=data, units=units)
    plan = plan_run(config)
    return patient_epsilons(plan, inputs), list(plan.mechanisms().values())


def test_the_largest_and_the_median_patient(workspace):
    patients, mechanisms = told(workspace, "aaaaabbcc" + "d")
    assert patients == {
        "largest": {"reports": 5, "epsilon": dp.group_epsilon(mechanisms, 1e-3, 5)},
        "median": {"reports": 2, "epsilon": dp.group_epsilon(mechanisms, 1e-3, 2)},
    }
    assert 0.5 < patients["median"]["epsilon"] < patients["largest"]["epsilon"]
    patients, _ = told(workspace, np.repeat(["a", "b"], [200, 1]))
    assert patients["largest"] == {"reports": 200, "epsilon": None}
    assert patients["median"]["epsilon"] <= 0.5


@pytest.mark.parametrize(
    ("patients", "changes"),
    [
        ("aab", {"privacy__unit": "patient"}),
        ("aab", {"privacy__epsilon": None}),
        ("aab", {"known": False}),
        ("abc", {}),
    ],
)
def test_nothing_where_there_is_nothing_to_say(workspace, patients, changes):
    assert told(workspace, patients, **changes)[0] is None
