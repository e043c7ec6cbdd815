# SPDX-License-Identifier: Apache-2.0
"""Cutting a sampled batch into microbatches of a few static shapes.

Reports are taken longest first: the next microbatch has the narrowest width that holds the longest
report left, and takes as many of the reports that follow as its rows allow. A row that reports
share begins with the longest left, and goes on with such as fill it. Only the very last microbatch
can have empty rows, and it is of the cheapest width in use.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """One logical batch, ready for the jitted step; shapes depend on `capacity` alone."""

    rows: np.ndarray
    """[capacity] int32: report indices, those of a shared row side by side; -1 is padding."""
    starts: np.ndarray
    """[buckets] int32: where in `rows` each bucket begins."""
    counts: np.ndarray
    """[buckets] int32: how many microbatches each bucket has."""


_SHARED = (32, 64, 128, 256, 512)
"""Positions of a row that several reports share, at least; at most twice as many."""
_LANES = 128
"""Narrower rows are for short texts alone, and not for an accelerator, whose microbatches are large
and whose lanes they would leave without work."""
_ATTENTION = 600
"""At so many positions attention costs as much as all else; BERT-small on a TPU 300, on a CPU 1,100
(docs/measurements/speed.md)."""


class _Waiting:
    """Reports that are in no row yet, by length: numbers of `ordered`, which is longest first."""

    def __init__(self, ordered: np.ndarray):
        self._by_length: dict[int, list[int]] = {}
        for number, length in reversed(list(enumerate(ordered.tolist()))):
            self._by_length.setdefault(length, []).append(number)
        self._lengths = list(self._by_length)  # of those that wait, ascending

    def longest(self, space: int) -> int:
        """The greatest length waiting that is at most `space`; 0 if there is none."""
        place = bisect.bisect_right(self._lengths, space)
        return self._lengths[place - 1] if place else 0

    def take(self, space: int, most: int) -> list[int]:
        """Up to `most` reports that fit into `space` together: the longest, then what fills it."""
        row = []
        while len(row) < most and (length := self.longest(space)):
            if row:  # in even shares, or short ones alone would be left for the end
                length = self.longest(-(-space // (most - len(row)))) or length
            row.append(self._by_length[length].pop())
            if not self._by_length[length]:
                self._lengths.remove(length)
            space -= length
        return row


def any_lengths(longest: int) -> np.ndarray:
    """For `Buckets`, where they are not known: down to an eighth of the longest, all
    scales alike, so that each width is about as much wider than the next."""
    return np.geomspace(max(longest / 8, 1), longest, 1000).round().astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The static shapes: `rows[i]` rows of `widths[i]` positions, widths descending, each shared by
    up to `reports[i]` reports; one, where that is None.

    Every microbatch holds about the same number of positions, so all cost about the same.
    """

    widths: tuple[int, ...]
    rows: tuple[int, ...]
    reports: tuple[int, ...] | None = None

    @property
    def shapes(self) -> Iterator[tuple[int, int, int]]:
        """(width, how many reports a microbatch has room for, and each of its rows)."""
        together = self.reports or (1,) * len(self.widths)
        for width, rows, each in zip(self.widths, self.rows, together, strict=True):
            yield width, rows * each, each

    @classmethod
    def shared(cls, lengths: np.ndarray, tokens: int) -> "Buckets | None":
        """Rows that reports of these lengths share, which leaves hardly any padding to compute and
        one shape to compile, or two: what is much longer has a width of its own. None where reports
        do not fill them.

        Of `_SHARED` the width that costs least: attention takes more the wider a row is, and wide
        rows are filled better.
        """
        longest = -(-int(lengths.max()) // 16) * 16
        if longest > 2 * _SHARED[-1]:
            return None
        some = lengths[:: -(-len(lengths) // 4096)]
        costs = {}
        for wide in _SHARED:
            if wide < _LANES and (longest > 2 * wide or tokens > 16 * _LANES):
                continue
            two = longest > 2 * wide and (lengths <= wide).any()
            widths = (longest, wide) if two else (max(longest, wide),)
            reports = []
            for width, narrower in zip(widths, (*widths[1:], 0), strict=True):
                fits = lengths[(lengths <= width) & (lengths > narrower)]
                # Beside a long report there is room for short ones.
                reports.append(max(math.ceil(width / fits.mean()), 2))
            one = cls(widths, (1,) * len(widths), tuple(reports))
            plan = one.plan(np.arange(len(some)), some, one.capacity(len(some)))
            cost = plan.counts @ [width * (1 + width / _ATTENTION) for width in widths]
            costs[one] = cost, some.sum() / one.positions(plan)
        best = min(costs, key=costs.__getitem__)
        if costs[best][1] < 0.8:
            return None
        rows = tuple(max(tokens // width, 1) for width in best.widths)
        return dataclasses.replace(best, rows=rows)

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

    def even(self, reports: int) -> "Buckets":
        """For so many reports of one width, each in a row of its own: as many microbatches as with
        these rows, all about as full."""
        rows = tuple(-(-reports // -(-reports // most)) for most in self.rows)
        return Buckets(self.widths, rows)

    def capacity(self, reports: int) -> int:
        """Slots that a plan of so many reports cannot exceed: each alone in its row, and a
        microbatch of every width not full."""
        return reports * max(self.reports or (1,)) + sum(slots for _, slots, _ in self.shapes)

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
        if self.reports:
            if (ordered < 1).any():
                raise ValueError("a report without tokens, which has no place in a shared row")
            return self._shared_plan(order, ordered, capacity)
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

    def _shared_plan(self, order: np.ndarray, ordered: np.ndarray, capacity: int) -> Plan:
        waiting = _Waiting(ordered)
        starts, counts = np.zeros((2, len(self.widths)), np.int32)
        padded, position = np.full(capacity, -1, np.int32), 0
        for i, (width, slots, most) in enumerate(self.shapes):
            starts[i] = position
            narrower = self.widths[i + 1] if i + 1 < len(self.widths) else 0
            while waiting.longest(width) > narrower:
                for begin in range(position, position + slots, most):
                    row = waiting.take(width, most)
                    if position + slots <= capacity:
                        padded[begin : begin + len(row)] = order[row]
                counts[i] += 1
                position += slots
        if position > capacity:
            raise OverflowError(f"{len(order)} reports need {position} slots, not {capacity}")
        return Plan(padded, starts, counts)

    def positions(self, plan: Plan) -> int:
        """Token positions the plan computes, padding included."""
        shapes = np.array(self.widths, np.int64) * self.rows
        return int((plan.counts * shapes).sum())
