# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from helpers_data import make_dataset
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxdp.data.dataset import DataError
from jaxdp.data.units import PrivacyUnits, reports_per_patient
from jaxdp.dp.sampling import PoissonSampler

PATIENTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


def sampler_for(units, probability=1.0, seed=7):
    return PoissonSampler(seed, probability, units.num_units)


@given(PATIENTS)
def test_patients_own_exactly_their_reports(patients):
    data = make_dataset(patients)
    units = PrivacyUnits.of(data, "patient")
    assert units.num_units == len(set(patients))
    assert sorted(units.members) == list(range(len(patients)))
    for start, end in zip(units.offsets, units.offsets[1:], strict=False):
        owners = set(data.patient_ids[units.members[start:end]])
        assert len(owners) == 1
    assert units.counts.min() >= 1


@given(PATIENTS, st.integers(0, 20), st.floats(0.01, 1.0))
def test_a_step_sees_one_report_of_each_sampled_patient(patients, step, probability):
    data = make_dataset(patients)
    units = PrivacyUnits.of(data, "patient")
    sampler = sampler_for(units, probability)
    rows = units.reports_at(step, sampler)
    assert len(rows) == len(sampler.sample(step))
    # patients are numbered in sorted order
    sampled = np.unique(data.patient_ids)[sampler.sample(step)]
    assert data.patient_ids[rows].tolist() == sampled.tolist()
    np.testing.assert_array_equal(rows, units.reports_at(step, sampler))


@given(PATIENTS, st.floats(0.01, 1.0))
def test_unit_report_is_the_plain_sample(patients, probability):
    units = PrivacyUnits.of(make_dataset(patients), "report")
    sampler = sampler_for(units, probability)
    np.testing.assert_array_equal(units.reports_at(3, sampler), sampler.sample(3))


def test_every_report_of_a_patient_is_equally_likely():
    data = make_dataset(["a"] * 5 + ["b"])
    units = PrivacyUnits.of(data, "patient")
    sampler = sampler_for(units)
    steps = 4_000
    shown = np.concatenate([units.reports_at(step, sampler) for step in range(steps)])
    frequency = np.bincount(shown, minlength=6)
    assert frequency[5] == steps
    assert stats.chisquare(frequency[:5]).pvalue > 1e-4
    # the same test tells a choice that favours one report over another by a fifth
    uneven = np.array([1.1, 1, 1, 1, 0.9]) * steps / 5
    assert stats.chisquare(frequency[:5], uneven).pvalue < 1e-4


@pytest.mark.parametrize("unit", ["patient", "report"])
@given(patients=PATIENTS, cap=st.integers(1, 5))
def test_cap(unit, patients, cap):
    data = make_dataset(patients)
    units = PrivacyUnits.of(data, unit, max_reports_per_patient=cap)
    kept = data.patient_ids[units.members]
    for patient in set(patients):
        assert (kept == patient).sum() == min(patients.count(patient), cap)
    assert len(np.unique(units.members)) == len(units.members)
    assert reports_per_patient(data, units)[0] <= cap


@given(PATIENTS, st.integers(1, 3), st.integers(0, 3))
def test_what_is_kept_of_a_patient_does_not_depend_on_others(patients, cap, seed):
    data = make_dataset(patients)

    def kept(data):
        units = PrivacyUnits.of(data, "patient", max_reports_per_patient=cap, seed=seed)
        return set(data.report_ids[units.members])

    rest = np.flatnonzero(data.patient_ids != patients[0])
    if len(rest):
        smaller = make_dataset(data.patient_ids[rest], report_ids=data.report_ids[rest])
        assert kept(smaller) == kept(data) & set(smaller.report_ids)


def test_seed_changes_what_is_kept():
    data = make_dataset(["a"] * 100)
    kept = [
        set(PrivacyUnits.of(data, "patient", max_reports_per_patient=50, seed=s).members.tolist())
        for s in (0, 1)
    ]
    assert kept[0] != kept[1]


def test_group_sizes():
    data = make_dataset(["a"] * 7 + ["b"] * 2 + ["c"] + ["d"] * 3)
    assert reports_per_patient(data, PrivacyUnits.of(data, "report")) == (7, 2)
    capped = PrivacyUnits.of(data, "report", max_reports_per_patient=2)
    assert reports_per_patient(data, capped) == (2, 2)


def test_refusals():
    data = make_dataset()
    with pytest.raises(DataError, match="privacy.unit must be one of report, patient, not 'study'"):
        PrivacyUnits.of(data, "study")
    with pytest.raises(ValueError, match="sampler has 4 units, the data 3"):
        PrivacyUnits.of(data, "patient").reports_at(0, PoissonSampler(0, 0.5, 4))


def test_patients_that_are_not_known_cannot_be_protected():
    data = make_dataset("abc", patients_known=False)
    assert PrivacyUnits.of(data, "report").num_units == 3
    for unit, cap in (("patient", None), ("report", 1)):
        with pytest.raises(DataError, match="synthetic does not tell patients apart"):
            PrivacyUnits.of(data, unit, max_reports_per_patient=cap)
