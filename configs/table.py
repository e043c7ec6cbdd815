# SPDX-License-Identifier: Apache-2.0
"""Your own table: name its labels, and how many units may be known to the public.

python scripts/train.py --config configs/table.py --config.data.root=reports.csv \
    --config.data.labels="('edema','effusion')" --config.privacy.units=1200
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "table"
    # Public: adapters in the last two layers (ALBERT's are one: "all"). Private: the recipe's.
    config.lora.layers = "last:2"
    config.train.recipe = "auto"
    config.run.name = "table"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
