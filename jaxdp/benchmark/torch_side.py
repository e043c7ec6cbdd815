# SPDX-License-Identifier: Apache-2.0
"""Contenders in PyTorch: transformers, PEFT and Opacus, by `baseline.TorchTrainer`.

python -m jaxdp.benchmark.torch_side JOB_FOLDER BEGAN \
    '{"method": "hooks", "padding": "dynamic", "sort": true}'
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxdp.baseline.job import Job
from jaxdp.baseline.trainer import TorchTrainer

from .flops import StepFlops
from .worker import PHYSICAL, serve


class Torch:
    """A job in PyTorch, scaled dot product attention, on all cores.

    Args:
        job: what to train.
        method, padding: of `TorchTrainer`.
        sort: whether a logical batch is sorted by length before it is cut into physical ones.
    """

    def __init__(
        self,
        job: Job,
        method: str,
        padding: str,
        sort: bool = False,
        physical_batch: int = PHYSICAL[0],
    ):
        torch.set_num_threads(os.cpu_count() or 1)
        self._job, self._sort = job, sort
        self._fixed = job.config.data.max_length if padding == "fixed" else None
        self._trainer = TorchTrainer(
            job, method=method, padding=padding, physical_batch=PHYSICAL[0]
        )
        encoder = json.loads((Path(job.backbone) / "config.json").read_text("utf-8"))
        self._flops = StepFlops.of(
            encoder,
            labels=len(job.label_names),
            rank=job.config.lora.rank,
            adapted=len(job.config.lora.targets),
            first_layer=job.config.lora.first_layer(encoder["num_hidden_layers"]),
            pooler=job.pooling == "cls",
            backward_passes=2 if method == "ghost" else 1,
        )

    @property
    def physical_batch(self) -> int:
        return self._trainer.physical_batch

    @physical_batch.setter
    def physical_batch(self, size: int) -> None:
        self._trainer.physical_batch = size

    def step(self, step: int, rows: np.ndarray) -> float:
        self._trainer.step(self._ordered(rows))
        return 0.0

    def _ordered(self, rows: np.ndarray) -> np.ndarray:
        if self._sort:
            return rows[np.argsort(-self._job.train.lengths[rows], kind="stable")]
        return rows

    def widths(self, rows: np.ndarray) -> np.ndarray:
        lengths = [
            self._job.train.lengths[part] for part in self._trainer.split(self._ordered(rows))
        ]
        return np.concatenate(
            [np.full(len(part), self._fixed or part.max(initial=1)) for part in lengths]
        )

    def flops(self) -> StepFlops:
        return self._flops

    def settings(self) -> dict[str, Any]:
        return self._trainer.settings()


if __name__ == "__main__":
    serve(Torch)
