# SPDX-License-Identifier: Apache-2.0
"""Reports as PyTorch reads them."""

import numpy as np
import torch

from .job import Reports


class ReportRows(torch.utils.data.Dataset):
    """(token ids [length], labels [num_labels]) of a report."""

    def __init__(self, reports: Reports):
        self._reports = reports
        self._offsets = np.concatenate([[0], np.cumsum(reports.lengths)])

    def __len__(self) -> int:
        return len(self._reports)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = self._reports.ids[self._offsets[row] : self._offsets[row + 1]]
        return torch.tensor(ids.astype(np.int64)), torch.tensor(self._reports.labels[row])


class Collate:
    """Pads reports to `width`, or to the longest of them if that is None.

    Gives (ids [B, L], mask [B, L], labels [B, num_labels]). transformers' attention fails on B = 0,
    which Poisson sampling draws at times, so no reports become one whose labels are all unknown:
    its loss and its gradient are zero.
    """

    def __init__(self, num_labels: int, width: int | None, device: str):
        self._num_labels, self._width, self._device = num_labels, width, device

    def __call__(self, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
        rows = rows or [(torch.zeros(1), torch.full([self._num_labels], -1))]
        width = self._width or max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        labels = torch.zeros(len(rows), self._num_labels, dtype=torch.int8)
        for i, (row_ids, row_labels) in enumerate(rows):
            ids[i, : len(row_ids)] = row_ids
            mask[i, : len(row_ids)] = 1
            labels[i] = row_labels
        return ids.to(self._device), mask.to(self._device), labels.to(self._device)
