# SPDX-License-Identifier: Apache-2.0
"""What every side is given."""

import dataclasses
import json
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from jaxdp.config import Config
from jaxdp.files import write_json

MAIN = "main stage"
"""Name of the mechanism that is compared, the last of a run."""
SIDES = ("jaxdp", "PyTorch")
"""Of a comparison."""
ADAPTER_PREFIX = "base_model.model."
"""PEFT's, of all names in an adapter file."""
TRAINED = {
    "lora": ("lora_A", "lora_B", "classifier"),
    "lora-ffa": ("lora_B", "classifier"),
    "head": ("classifier",),
}
"""train.mode that all sides have -> what marks the names of trained tensors there."""


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

    def token_ids(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Of each of these reports."""
        ends = np.cumsum(self.lengths)
        return [self.ids[ends[row] - self.lengths[row] : ends[row]] for row in rows]

    def take(self, rows: np.ndarray) -> "Reports":
        """These reports, in this order."""
        ids = np.concatenate(self.token_ids(rows))
        return Reports(ids, self.lengths[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True, repr=False)
class Job:
    """The main stage of one run, from its starting point: everything that decides its result but
    the coins for sampling and noise, which `seed` gives each side.

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

    # All that sides and tables read of the configuration.
    name = property(attrgetter("config.run.name"))
    seed = property(attrgetter("config.run.research_seed"))
    devices = property(attrgetter("config.run.devices"))
    epsilon = property(attrgetter("config.privacy.epsilon"))
    delta = property(attrgetter("config.privacy.delta"))
    secure_noise = property(attrgetter("config.privacy.secure_noise"))
    task = property(attrgetter("config.data.task"))
    max_length = property(attrgetter("config.data.max_length"))
    lora = property(attrgetter("config.lora"))
    stage = property(attrgetter("config.train"))

    @property
    def private(self) -> bool:
        return bool(self.mechanisms)

    def sampling_probability(self, mechanism: str = MAIN) -> float:
        """Of a report in each of its steps."""
        if not self.private:
            return min(self.stage.expected_batch_size / len(self.train), 1.0)
        fields = self.mechanisms[mechanism]
        return fields["expected_batch_size"] / fields["units"]

    def without_noise(self) -> "Job":
        """The same with noise multiplier 0: for comparing arithmetic."""
        silent = self.mechanisms | {MAIN: self.mechanisms[MAIN] | {"noise_multiplier": 0.0}}
        return dataclasses.replace(self, mechanisms=silent)

    def with_dtype(self, dtype: str) -> "Job":
        """The same with that model.dtype."""
        model = dataclasses.replace(self.config.model, dtype=dtype)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, model=model))

    def write(self) -> Path:
        """Writes job.npz, then job.json, beside the adapter; their folder, for `read`."""
        folder = self.adapter.parent
        splits = {
            f"{split}.{name}": values
            for split in ("train", "test")
            for name, values in vars(getattr(self, split)).items()
        }
        np.savez(folder / "job.npz", center=self.center, **splits)
        names = ("backbone", "pooling", "label_names", "mechanisms")
        settings = {name: getattr(self, name) for name in names}
        write_json(folder / "job.json", {"config": self.config.to_dict()} | settings)
        return folder

    @classmethod
    def read(cls, folder: Path) -> "Job":
        settings = json.loads((folder / "job.json").read_text("utf-8"))
        settings["config"] = Config.of_run(settings["config"])
        settings["label_names"] = tuple(settings["label_names"])
        with np.load(folder / "job.npz") as arrays:
            for split in ("train", "test"):
                names = (f"{split}.{field.name}" for field in dataclasses.fields(Reports))
                settings[split] = Reports(*(arrays[name] for name in names))
            return cls(**settings, center=arrays["center"], adapter=folder / "adapter")
