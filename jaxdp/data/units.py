# SPDX-License-Identifier: Apache-2.0
"""Privacy units: which reports belong to whom, and which of them a step sees."""

import dataclasses

import numpy as np

from jaxdp.dp.sampling import PoissonSampler

from .dataset import DataError, ReportDataset, keyed_fraction, require_choice


@dataclasses.dataclass(frozen=True)
class PrivacyUnits:
    """The reports of one training set, grouped by privacy unit.

    Guarantee: a step sees at most one report of each unit, so clipping each report's gradient
    bounds what a unit adds to a step's sum. With unit "patient", sampled patients show one report
    each, drawn afresh and uniformly: add/remove of a patient with all reports, at the noise of
    add/remove of one report.

    Attributes:
        unit: "report" or "patient".
        members: [kept reports] int64 row numbers of the dataset, unit after unit.
        offsets: [num_units + 1] int64; unit u owns members[offsets[u] : offsets[u + 1]].
    """

    unit: str
    members: np.ndarray = dataclasses.field(repr=False)
    offsets: np.ndarray = dataclasses.field(repr=False)

    @classmethod
    def of(
        cls,
        dataset: ReportDataset,
        unit: str,
        *,
        max_reports_per_patient: int | None = None,
        seed: int = 0,
    ) -> "PrivacyUnits":
        """Groups the rows of `dataset` (one split of it, usually: `dataset.subset("train")`).

        Args:
            dataset: a report's patient is its entry in `patient_ids`.
            unit: "report" or "patient".
            max_reports_per_patient: keep at most this many reports of each patient; None keeps all.
                Which ones depends on nothing but the report's own id and `seed`, so no patient
                changes what is kept of another. With unit "report" a report that is added can
                displace one of the same patient: towards the uncapped data that is a group of two.
            seed: public.

        Raises:
            DataError: unknown unit, or patients of whom the source tells nothing.
        """
        require_choice("privacy.unit", unit, ("report", "patient"))
        if not dataset.patients_known and (unit == "patient" or max_reports_per_patient):
            raise DataError(
                f"{dataset.name} does not tell patients apart, so they cannot be the privacy unit "
                "nor be capped; set data.patient_column or privacy.unit = report"
            )
        patient = np.unique(dataset.patient_ids, return_inverse=True)[1]
        if max_reports_per_patient is None:
            rows = np.argsort(patient, kind="stable")
        else:
            priority = keyed_fraction(dataset.report_ids, seed, "max_reports_per_patient")
            rows = np.lexsort((priority, patient))
            starts = np.searchsorted(patient[rows], patient[rows], side="left")
            rows = rows[np.arange(len(rows)) - starts < max_reports_per_patient]
        if unit == "report":
            return cls(unit, np.sort(rows), np.arange(len(rows) + 1))
        ends = np.flatnonzero(np.diff(patient[rows])) + 1
        return cls(unit, rows, np.concatenate([[0], ends, [len(rows)]]).astype(np.int64))

    @property
    def num_units(self) -> int:
        """Units that exist; private, unlike the published `privacy.units`."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """[num_units] reports of each unit, at least 1."""
        return np.diff(self.offsets)

    def reports_at(self, step: int, sampler: PoissonSampler) -> np.ndarray:
        """Row numbers of the reports that `step` trains on: one per sampled unit; may be empty.

        A pure function of (sampler.seed, step), like the sampler itself.

        Raises:
            ValueError: the sampler was made for another number of units.
        """
        if sampler.num_units != self.num_units:
            raise ValueError(f"sampler has {sampler.num_units} units, the data {self.num_units}")
        units = sampler.sample(step)
        if self.num_units == len(self.members):  # one report each: nothing to choose
            return self.members[units]
        shown = sampler.choose(step, self.counts)[units]
        return self.members[self.offsets[units] + shown]


def reports_per_patient(dataset: ReportDataset, units: PrivacyUnits) -> tuple[int, int]:
    """(largest, median) number of kept reports per patient, for group privacy under unit "report".

    The median is the lower one, hence a number of reports that some patient has. Both are counts of
    private data.
    """
    counts = np.unique(dataset.patient_ids[units.members], return_counts=True)[1]
    return int(counts.max()), int(np.sort(counts)[(len(counts) - 1) // 2])
