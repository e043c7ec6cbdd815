# SPDX-License-Identifier: Apache-2.0
"""What a sweep costs: each member alone, and everything that is trained on the same data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

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
        mechanisms: what they do together, for a ledger.
        epsilon: None where too little noise is left to claim anything.
    """

    source: str
    unit: str
    members: tuple[str, ...]
    delta: float
    mechanisms: Mapping[str, dp.SubsampledGaussian]
    epsilon: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "source": self.source,
            "unit": self.unit,
            "members": list(self.members),
            "delta": self.delta,
            "epsilon": self.epsilon,
            "mechanisms": {n: dataclasses.asdict(m) for n, m in self.mechanisms.items()},
        }


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep with every mechanism calibrated."""

    sweep: Sweep
    members: Mapping[str, Member]
    plans: Mapping[str, RunPlan]
    groups: tuple[tuple[str, ...], ...]

    def epsilon(self, name: str) -> float | None:
        """Of one member alone, at its own delta; None without privacy."""
        mechanisms = list(self.plans[name].mechanisms().values())
        delta = self.members[name].config.privacy.delta
        return dp.epsilon_pld(mechanisms, delta) if mechanisms else None

    def group_mechanisms(self, index: int) -> dict[str, dp.SubsampledGaussian]:
        """What the private members of a group do together."""
        each = {n: m for n in self.groups[index] if (m := self.plans[n].mechanisms())}
        if self.sweep.share_sampling:
            return dp.joint_mechanisms(list(each.values()))
        return {f"{n}: {stage}": m for n, stages in each.items() for stage, m in stages.items()}

    def group_epsilon(self, index: int) -> float | None:
        """Of publishing all private members of a group; None where nothing can be claimed."""
        private = [n for n in self.groups[index] if self.plans[n].mechanisms()]
        if not private:
            return None
        delta = min(self.members[n].config.privacy.delta for n in private)
        return _claimable(self.group_mechanisms(index), delta)

    def joint_costs(self) -> list[JointCost]:
        """One for each collection and privacy unit. Groups draw their own samples, so they compose.

        Collections are told apart by source and root, as configured: overlapping ones under two
        names are for people to add up.
        """
        found: dict[tuple, list[int]] = {}
        for index, names in enumerate(self.groups):
            config = self.members[names[0]].config
            if any(self.plans[n].mechanisms() for n in names):
                key = (config.data.source, config.data.root, config.privacy.unit)
                found.setdefault(key, []).append(index)
        costs = []
        for (source, _, unit), indices in found.items():
            private = [n for i in indices for n in self.groups[i] if self.plans[n].mechanisms()]
            mechanisms = {
                f"group {i + 1}, {stage}": m
                for i in indices
                for stage, m in self.group_mechanisms(i).items()
            }
            delta = min(self.members[n].config.privacy.delta for n in private)
            epsilon = _claimable(mechanisms, delta)
            costs.append(JointCost(source, unit, tuple(private), delta, mechanisms, epsilon))
        return costs


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """Expands and calibrates a sweep; nothing is read or written.

    Raises:
        ConfigError: see `expand` and `plan_run`; the message names the member.
    """
    members = expand(sweep)
    plans = {name: plan_run(member.config) for name, member in members.items()}
    return SweepPlan(sweep, members, plans, tuple(map(tuple, groups(members))))


def _claimable(mechanisms: Mapping[str, dp.SubsampledGaussian], delta: float) -> float | None:
    try:
        epsilon = dp.epsilon_pld(list(mechanisms.values()), delta)
    except ValueError:  # too little noise for the accountant: far beyond any protection
        return None
    return epsilon if math.isfinite(epsilon) else None
