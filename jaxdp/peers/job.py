# SPDX-License-Identifier: Apache-2.0
"""What every side is given, and what each gives back, as folders."""

import dataclasses
import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp.config import Config
from jaxdp.files import write_json

MAIN = "main stage"
"""Name of the mechanism that is compared, the last of a run."""
SIDES = ("jaxdp", "PyTorch")
"""Of a comparison."""
TRAINED = {
    "lora": ("lora_A", "lora_B", "classifier"),
    "lora-ffa": ("lora_B", "classifier"),
    "head": ("classifier",),
}
"""train.mode that all sides have -> what marks the names of trained tensors."""


@dataclasses.dataclass(frozen=True, repr=False)
class Reports:
    """Token ids end to end, and labels."""

    ids: np.ndarray
    """[tokens]"""
    lengths: np.ndarray
    """[n]"""
    labels: np.ndarray
    """[n, num_labels] int8: 1, 0, or -1 for unknown."""

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray) -> "Reports":
        """These reports, in this order."""
        starts = np.cumsum(self.lengths) - self.lengths
        ids = [self.ids[starts[row] : starts[row] + self.lengths[row]] for row in rows]
        return Reports(np.concatenate(ids), self.lengths[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True, repr=False)
class Job:
    """The main stage of one run, from its starting point: everything that decides its result but
    the coins for sampling and noise, which `config.run.research_seed` gives each side.

    Holds token ids and labels: as private as the reports.

    Attributes:
        config: of the whole run.
        backbone: directory of the frozen weights.
        pooling: one of `models.classifier.POOLINGS`.
        label_names: [num_labels].
        mechanisms: name -> fields of `dp.SubsampledGaussian`, calibrated together, `MAIN` last;
            empty without privacy.
        adapter: directory in PEFT's format: initial LoRA and head.
        center: [H], subtracted from features before the head while training; zeros if nothing is.
            The adapter's head is the ordinary one, for features as they are.
        train: one report per privacy unit.
        test: to be labelled at the end.
    """

    config: Config
    backbone: str
    pooling: str
    label_names: tuple[str, ...]
    mechanisms: dict[str, dict[str, Any]]
    adapter: Path
    center: np.ndarray
    train: Reports
    test: Reports

    @property
    def private(self) -> bool:
        return bool(self.mechanisms)

    @property
    def noise_multiplier(self) -> float:
        """Of the main stage; 0 without privacy."""
        return self.mechanisms[MAIN]["noise_multiplier"] if self.private else 0.0

    @property
    def sampling_probability(self) -> float:
        """Of a report in a step of the main stage."""
        if self.private:
            return sampling_probability(self.mechanisms[MAIN])
        return min(self.config.train.expected_batch_size / len(self.train), 1.0)

    def without_noise(self) -> "Job":
        """The same with noise multiplier 0: for comparing arithmetic."""
        silent = self.mechanisms | {MAIN: self.mechanisms[MAIN] | {"noise_multiplier": 0.0}}
        return dataclasses.replace(self, mechanisms=silent)

    def write(self, folder: Path) -> None:
        """Writes job.json and job.npz; `read` needs `adapter` to be folder/adapter."""
        arrays = {"center": self.center}
        for split in ("train", "test"):
            for field, value in vars(getattr(self, split)).items():
                arrays[f"{split}.{field}"] = value
        np.savez(folder / "job.npz", **arrays)
        settings = {
            name: getattr(self, name)
            for name in ("backbone", "pooling", "label_names", "mechanisms")
        }
        write_json(folder / "job.json", {"config": self.config.to_dict()} | settings)

    @classmethod
    def read(cls, folder: Path) -> "Job":
        settings = json.loads((folder / "job.json").read_text("utf-8"))
        with np.load(folder / "job.npz") as arrays:
            splits = {
                split: Reports(*(arrays[f"{split}.{f.name}"] for f in dataclasses.fields(Reports)))
                for split in ("train", "test")
            }
            center = arrays["center"]
        settings["config"] = Config.from_dict(settings["config"])
        settings["label_names"] = tuple(settings["label_names"])
        return cls(**settings, **splits, center=center, adapter=folder / "adapter")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one side made of a job, each in a process of its own.

    Attributes:
        setup_seconds: from the start of the process to the first step.
        first_step_seconds: compilation included.
        later_seconds: all other steps.
        reports: that took part, step by step.
        peak_memory: of the process, bytes.
        epsilon: accountant -> what the whole run cost.
        settings: what was run, read back from the objects that ran it.
        probabilities: [test reports, num_labels].
    """

    setup_seconds: float
    first_step_seconds: float
    later_seconds: float
    reports: list[int]
    peak_memory: int
    epsilon: dict[str, float]
    settings: dict[str, Any]
    probabilities: np.ndarray

    @property
    def training_seconds(self) -> float:
        """All steps."""
        return self.first_step_seconds + self.later_seconds

    @property
    def reports_per_second(self) -> float:
        """After the first step; 0 if there was none."""
        return sum(self.reports[1:]) / self.later_seconds if len(self.reports) > 1 else 0.0

    def write(self, folder: Path) -> None:
        """Writes probabilities.npy, then outcome.json, whose presence says that all is there."""
        np.save(folder / "probabilities.npy", self.probabilities)
        values = {k: v for k, v in vars(self).items() if k != "probabilities"}
        write_json(folder / "outcome.json", values)

    @classmethod
    def read(cls, folder: Path) -> "Outcome":
        values = json.loads((folder / "outcome.json").read_text("utf-8"))
        return cls(**values, probabilities=np.load(folder / "probabilities.npy"))


def sampling_probability(mechanism: Mapping[str, Any]) -> float:
    """Of a mechanism in `Job.mechanisms`."""
    return mechanism["expected_batch_size"] / mechanism["units"]


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
