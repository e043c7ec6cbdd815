# SPDX-License-Identifier: Apache-2.0
"""CT-RATE, BERT-medium, epsilon 1 per report. The base of all CT-RATE configs.

python scripts/train.py --config configs/ctrate_eps1.py --config.data.root=/data/ct-rate

Result: not run (the data are gated). Data, model, rank and epsilon are the study's; the recipe is
the one that gave most on Open-I and PadChest, transferred and not measured. Trained in private: the
head alone, 128 numbers and a bias for each of 18 labels, on every report at every step.
ctrate_plain_eps1.py is the study's own.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "ctrate"
    # Ours: where 512 tokens are too few, it is the findings that are cut.
    config.data.text = "impression+findings"
    config.data.max_length = 512
    config.model.backbone = "bert-medium"
    # Public: adapters in the last two layers, what each label asks for, and a head. ALBERT with its
    # one shared layer takes "all".
    config.lora.layers = "last:2"
    config.train.recipe = "auto"

    config.privacy.epsilon = 1.0
    config.privacy.delta = 1e-5
    # Published: 20,000 training patients with about 1.2 scans each, less 5 % held out.
    config.privacy.units = 22800

    config.run.name = "ctrate_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 50
    return config
