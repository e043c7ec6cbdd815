# SPDX-License-Identifier: Apache-2.0
"""The members of the study: two data sets, three models, four epsilons and none.

python scripts/sweep.py --config configs/sweep_paper.py --dry-run
python scripts/paper_table.py --runs runs/sweep_paper

The data are gated: add --set mimic:data.root=/data/mimic-cxr --set ctrate:data.root=/data/ct-rate.
One member alone is trained by scripts/train.py:

python scripts/train.py --config configs/mimic_eps1.py --config.model.backbone=bert-small \
    --config.privacy.epsilon=0.1 --config.run.name=mimic_bert-small_eps0.1

Result: not run (the data are gated).
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep

MODELS = ("bert-medium", "bert-small", "albert-base-v2")
EPSILONS = {"eps1": (0.01, 0.1, 1.0, 10.0), "nonprivate": (None,)}


def get_sweep():
    grids = [
        Grid(
            source,
            inherit(__file__, f"{source}_{recipe}"),
            {"model.backbone": MODELS, "privacy.epsilon": epsilons},
        )
        for source in ("mimic", "ctrate")
        for recipe, epsilons in EPSILONS.items()
    ]
    return Sweep(name="sweep_paper", grids=grids)
