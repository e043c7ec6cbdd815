# SPDX-License-Identifier: Apache-2.0
"""Cutting a sampled batch into microbatches of a few static shapes.

Reports are sorted by length, longest first, and cut greedily: the next microbatch takes the
smallest bucket that holds the longest report left, and as many of the reports that follow as its
rows allow. Only the very last microbatch can have empty rows, and it is in the cheapest bucket in
use.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """One logical batch, ready for the jitted step; shapes depend on `capacity` alone."""

    rows: np.ndarray
    """[capacity] int32: report indices, longest first; -1 is padding."""
    starts: np.ndarray
    """[buckets] int32: where in `rows` each bucket begins."""
    counts: np.ndarray
    """[buckets] int32: how many microbatches each bucket has."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The static shapes: `rows[i]` reports of `widths[i]` positions, widths descending.

    Every microbatch holds about the same number of positions, so all cost about the same.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def for_lengths(cls, max_length: int, tokens: int, ratio: float = 1.15) -> "Buckets":
        """From max_length down to an eighth of it, each with about `tokens` positions.

        Every width is 1 / ratio of the one before, rounded down to a multiple of 4: a report of any
        length wastes as large a share of its positions (7 % at 1.15), where equal steps waste most
        on short reports; and each width costs a program its compilation.
        """
        widths, least = [max_length], max(max_length // 8, 1)
        while (narrower := int(widths[-1] / ratio) // 4 * 4) >= least:
            widths.append(narrower)
        return cls(tuple(widths), tuple(max(tokens // w, 1) for w in widths))

    def for_features(self) -> "Buckets":
        """For cached features, one position each."""
        return Buckets((1,), (self.widths[0] * self.rows[0],))

    def plan(self, reports: np.ndarray, lengths: np.ndarray, capacity: int) -> Plan:
        """Cuts `reports` (indices into `lengths`, each at least 1) into microbatches.

        Raises:
            OverflowError: they need more than `capacity` slots; plan again with a larger one.
        """
        order = reports[np.argsort(-lengths[reports], kind="stable")]
        ordered = lengths[order]
        starts, counts = np.zeros(len(self.widths), np.int32), np.zeros(len(self.widths), np.int32)
        position = 0
        for i, rows in enumerate(self.rows):
            starts[i] = position
            narrower = self.widths[i + 1] if i + 1 < len(self.widths) else 0
            # as long as the longest report left does not fit the next bucket
            too_long = int(np.searchsorted(-ordered, -narrower, side="left")) - position
            counts[i] = max(-(-too_long // rows), 0)
            position += int(counts[i]) * rows
        if position > capacity:
            raise OverflowError(f"{len(reports)} reports need {position} slots, not {capacity}")
        padded = np.full(capacity, -1, np.int32)
        padded[: len(order)] = order
        return Plan(padded, starts, counts)

    def positions(self, plan: Plan) -> int:
        """Token positions the plan computes, padding included."""
        shapes = np.array(self.widths, np.int64) * self.rows
        return int((plan.counts * shapes).sum())
