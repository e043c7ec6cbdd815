# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 1 per report. The base of all PadChest configs.

python scripts/train.py --config configs/padchest_eps1.py

Result: test weighted F1 0.948 (0.948 to 0.949), mean and range over 3 runs.

A patient has up to 113 reports in training; padchest_patient_eps1.py protects patients.
"""

from jaxdp.config import default_config


def get_config():
    config = default_config()
    config.data.source = "padchest"
    config.model.backbone = "minilm-l6"
    # Public: adapters in the last two layers, what each label asks for, and a head.
    config.lora.layers = "last:2"
    # Private: the head alone. Its rate, batch and clip norm are the recipe's.
    config.train.recipe = "auto"

    config.privacy.epsilon = 1.0
    # A public round number; the split has 85,948 training reports of 53,041 patients.
    config.privacy.units = 85_000

    config.run.name = "padchest_eps1"
    config.run.eval_every = 50
    config.run.checkpoint_every = 100
    return config
