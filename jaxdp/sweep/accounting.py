# SPDX-License-Identifier: Apache-2.0
"""What a sweep costs: each member alone, and everything that is trained on the same data."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from jaxdp import dp
from jaxdp.training.stages import RunPlan, plan_run

from .members import Member, Sweep, expand, groups


@dataclasses.dataclass(frozen=True)
class JointCost:
    """Of publishing every private member that was trained on one collection, hence also of
    publishing the best of them. Held-out reports by which it is chosen are not covered.

    Attributes:
        members: names; those without privacy are not among them, and nothing covers those.
        delta: the smallest of theirs.
        epsilon: None where too little noise is left to claim anything.
        mechanisms: what they do together, for a ledger.
    """

    source: str
    unit: str
    members: tuple[str, ...]
    delta: float
    epsilon: float | None
    mechanisms: Mapping[str, dp.SubsampledGaussian]


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep with every mechanism calibrated."""

    sweep: Sweep
    members: Mapping[str, Member]
    plans: Mapping[str, RunPlan]
    groups: list[list[str]]

    def group_of(self, name: str) -> int:
        """The index of a member's group."""
        return next(i for i, names in enumerate(self.groups) if name in names)

    def private(self, index: int) -> list[str]:
        """The members of a group that are trained with privacy."""
        return [n for n in self.groups[index] if self.plans[n].mechanisms()]

    def group_mechanisms(self, index: int) -> dict[str, dp.SubsampledGaussian]:
        """What the private members of a group do together."""
        each = {name: self.plans[name].mechanisms() for name in self.private(index)}
        if self.sweep.share_sampling:
            return dp.joint_mechanisms(list(each.values()))
        return {f"{n}: {stage}": m for n, stages in each.items() for stage, m in stages.items()}

    def group_epsilon(self, index: int) -> float | None:
        """Of publishing all private members of a group; None where nothing can be claimed."""
        private = self.private(index)
        return self._cost(private, self.group_mechanisms(index))[1] if private else None

    def joint_costs(self) -> list[JointCost]:
        """One for each collection and privacy unit. Groups draw their own samples, so they compose.

        Collections are told apart by source and root, as configured: overlapping ones under two
        names are for people to add up.
        """
        found: dict[tuple, list[int]] = {}
        for index, (first, *_) in enumerate(self.groups):
            if self.private(index):
                found.setdefault(self.members[first].collection, []).append(index)
        costs = []
        for (source, _, unit), indices in found.items():
            names = tuple(name for i in indices for name in self.private(i))
            mechanisms = {
                f"group {i + 1}, {stage}": m
                for i in indices
                for stage, m in self.group_mechanisms(i).items()
            }
            costs.append(JointCost(source, unit, names, *self._cost(names, mechanisms), mechanisms))
        return costs

    def _cost(
        self, names: Sequence[str], mechanisms: Mapping[str, dp.SubsampledGaussian]
    ) -> tuple[float, float | None]:
        """(these members' smallest delta, epsilon there; None where nothing can be claimed)."""
        delta = min(self.plans[name].delta for name in names)
        try:
            epsilon = dp.epsilon_pld(list(mechanisms.values()), delta)
        except ValueError:  # too little noise for the accountant: far beyond any protection
            return delta, None
        return delta, epsilon if math.isfinite(epsilon) else None


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """Expands and calibrates a sweep; nothing is read or written.

    Raises:
        ConfigError: see `expand` and `plan_run`.
    """
    members = expand(sweep)
    plans = {name: plan_run(member.config) for name, member in members.items()}
    return SweepPlan(sweep, members, plans, groups(members))
