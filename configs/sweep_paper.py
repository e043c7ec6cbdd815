# SPDX-License-Identifier: Apache-2.0
"""The study's members: two data sets, three models, four epsilons and none by plain DP-LoRA, and
the four epsilons by our recipe, a head with label attention after a public start.

python scripts/sweep.py --config configs/sweep_paper.py --dry-run
python scripts/paper_table.py --runs runs/sweep_paper

The data are gated: add --set mimic:data.root=/data/mimic-cxr --set ctrate:data.root=/data/ct-rate.
One member alone is trained by scripts/train.py:

python scripts/train.py --config configs/mimic_plain_eps1.py --config.model.backbone=bert-small \
    --config.privacy.epsilon=0.1 --config.run.name=mimic_lora_bert-small_eps0.1
"""

from jaxdp.config import inherit
from jaxdp.sweep.members import Grid, Sweep

MODELS = ("bert-medium", "bert-small", "albert-base-v2")
EPSILONS = {
    "nonprivate": (None,),
    "plain_eps1": (10.0, 1.0, 0.1, 0.01),
    "eps1": (10.0, 1.0, 0.1, 0.01),
}


def get_sweep():
    grids = []
    for source in ("mimic", "ctrate"):
        for recipe, epsilons in EPSILONS.items():
            for model in MODELS:
                base = inherit(__file__, f"{source}_{recipe}")
                if model.startswith("albert"):
                    base.lora.layers = "all"  # its one shared layer acts at every depth
                axes = {
                    "train.mode": ("head" if recipe == "eps1" else "lora",),
                    "model.backbone": (model,),
                    "privacy.epsilon": epsilons,
                }
                grids.append(Grid(source, base, axes))
    return Sweep(name="sweep_paper", grids=grids)
