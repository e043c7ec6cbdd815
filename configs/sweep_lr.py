# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, the head alone at epsilon 8: learning rates by clip norms, and what it
costs to try them all.

python scripts/sweep.py --config configs/sweep_lr.py
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep


def get_sweep():
    base = inherit(__file__, "openi_head_eps8")
    axes = {"train.learning_rate": (0.1, 0.3, 1.0), "privacy.l2_clip_norm": (0.01, 0.03, 0.1)}
    return Sweep(name="sweep_lr", grids=[Grid("openi", base, axes)])
