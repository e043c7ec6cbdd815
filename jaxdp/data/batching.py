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


def any_lengths(longest: int) -> np.ndarray:
    """For `Buckets.for_lengths`, where they are not known: down to an eighth of the longest, all
    scales alike, so that each width is about as much wider than the next."""
    return np.geomspace(max(longest / 8, 1), longest, 1000).round().astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The static shapes: `rows[i]` reports of `widths[i]` positions, widths descending.

    Every microbatch holds about the same number of positions, so all cost about the same.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]

    @classmethod
    def for_lengths(cls, lengths: np.ndarray, tokens: int, widths: int) -> "Buckets":
        """At most so many widths, each with about `tokens` positions, that pad reports of these
        lengths least: the longest length, and multiples of 4 below it.

        Each width costs a program its compilation, and saves padding only if it lies where the
        lengths do.
        """
        # Reports of up to grid[i] tokens pad least if grid[i] is their widest, and those up to the
        # next narrower one pad least with one width less.
        grid = np.unique(np.minimum(-(-lengths // 4) * 4, lengths.max()))
        up_to = np.searchsorted(np.sort(lengths), grid, side="right")
        least, before = grid * up_to, []
        for _ in range(min(widths, len(grid)) - 1):
            # [i, j]: the next narrower than grid[i] is grid[j]; there is none where j = i.
            cost = least + grid[:, None] * (up_to[:, None] - up_to)
            cost = np.where(np.tri(len(grid), dtype=bool), cost, np.inf)
            before.append(cost.argmin(axis=1))
            least = cost.min(axis=1)
        chosen = [len(grid) - 1]
        for narrower in reversed(before):
            chosen.append(narrower[chosen[-1]])
        found = grid[chosen].tolist()
        return cls(tuple(found), tuple(max(tokens // width, 1) for width in found))

    def for_features(self) -> "Buckets":
        """For cached features, one position each."""
        return Buckets((1,), (self.widths[0] * self.rows[0],))

    def plan(self, reports: np.ndarray, lengths: np.ndarray, capacity: int) -> Plan:
        """Cuts `reports` (indices into `lengths`, each at least 1) into microbatches.

        Raises:
            OverflowError: they need more than `capacity` slots; plan again with a larger one.
            ValueError: one is longer than the widest.
        """
        order = reports[np.argsort(-lengths[reports], kind="stable")]
        ordered = lengths[order]
        if (ordered > self.widths[0]).any():
            raise ValueError(f"a report of {ordered[0]} tokens, but at most {self.widths[0]} fit")
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
