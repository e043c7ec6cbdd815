# SPDX-License-Identifier: Apache-2.0
"""The members of the study: two data sets, three models, four epsilons and none.

`get_members()` gives name -> config; each can be trained by scripts/train.py with the flags below,
and scripts/paper_table.py puts what is finished into one table:

python scripts/train.py --config configs/mimic_eps1.py --config.model.backbone=bert-small \
    --config.privacy.epsilon=0.1 --config.run.name=mimic_bert-small_eps0.1

Result: not run (the data are gated).
"""

from jaxdp.config import inherit

MODELS = ("bert-medium", "bert-small", "albert-base-v2")
EPSILONS = (0.01, 0.1, 1.0, 10.0, None)


def get_members():
    members = {}
    for source in ("mimic", "ctrate"):
        for model in MODELS:
            for epsilon in EPSILONS:
                private = epsilon is not None
                config = inherit(__file__, f"{source}_{'eps1' if private else 'nonprivate'}")
                config.model.backbone = model
                if private:
                    config.privacy.epsilon = epsilon
                suffix = f"eps{epsilon:g}" if private else "nonprivate"
                config.run.name = f"{source}_{model}_{suffix}"
                members[config.run.name] = config
    return members
