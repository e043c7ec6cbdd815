# SPDX-License-Identifier: Apache-2.0
"""What several trainings cost together if each step of all of them uses one and the same sample."""

import math
from collections.abc import Mapping, Sequence

from .mechanism import SubsampledGaussian


def joint_mechanisms(
    members: Sequence[Mapping[str, SubsampledGaussian]],
) -> dict[str, SubsampledGaussian]:
    """Members of a group, released together, as one run: name -> mechanism.

    Step t of a stage releases, for each member m, f_m(S_t) + sigma_m C_m Z_m: a clipped sum over
    the SAME sample S_t, and noise of its own. That is exactly one Poisson-subsampled Gaussian with

        sigma_joint = (sum_m sigma_m^-2)^(-1/2)

    Proof sketch. Fix what was released before; every f_m may depend on it, on its own settings and
    on all other members. Divide release m by sigma_m C_m and stack: a Gaussian with covariance I.
    A unit that is in S_t moves block m by at most 1 / sigma_m, hence the stack by at most
    (sum_m sigma_m^-2)^(1/2) = 1 / sigma_joint, and it is in S_t with probability q, once for all
    blocks. Dividing is invertible, so nothing is lost or gained; where every member's vector is at
    its clip norm the bound is met. Steps then compose adaptively, as in `epsilon_pld`.

    What must hold, and is not checked beyond the numbers given here:

    - the same privacy units, sampling probability AND sample at each step of a stage;
    - noise that is independent between members: two with one noise key reveal their difference;
    - a unit adds one vector of norm <= C_m to each member's sum. C_m may differ, as do learning
      rates, initial adapters and what is adapted: they appear in f_m only.

    With samples of their own, members are composed instead (`epsilon_pld` of all their mechanisms),
    which costs less: a unit is then rarely in all samples at once. Different groups have different
    samples and are composed, too.

    Args:
        members: one run each: stage name -> mechanism. A stage may be missing. Steps may differ:
            the later ones are then joint among those who take them.

    Returns:
        One mechanism for each stage; several, with steps in their names, where steps differ.
        `l2_clip_norm` is 1: blocks are measured in their own clip norms. No noise in one member's
        stage is no noise in the joint one.

    Raises:
        ValueError: members differ in units or expected batch size of a stage.
    """
    stages = dict.fromkeys(name for member in members for name in member)
    result = {}
    for name in stages:
        active = [m[name] for m in members if name in m and m[name].steps > 0]
        if len({(m.units, m.expected_batch_size) for m in active}) > 1:
            raise ValueError(f"{name}: members of a group must have the same units and batch size")
        ends = sorted({m.steps for m in active})
        for begin, end in zip([0, *ends], ends, strict=False):
            taking = [m for m in active if m.steps >= end]
            part = f"{name}, steps {begin + 1} to {end}" if len(ends) > 1 else name
            result[part] = taking[0].replace(
                steps=end - begin,
                l2_clip_norm=1.0,
                noise_multiplier=joint_noise_multiplier([m.noise_multiplier for m in taking]),
            )
    return result


def joint_noise_multiplier(noise_multipliers: Sequence[float]) -> float:
    """sigma_joint, see `joint_mechanisms`; at most the smallest, and 0 if that is 0."""
    least = min(noise_multipliers)
    if least == 0:
        return 0.0
    return least / math.sqrt(math.fsum((least / s) ** 2 for s in noise_multipliers))
