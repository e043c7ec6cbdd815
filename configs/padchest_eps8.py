# SPDX-License-Identifier: Apache-2.0
"""PadChest, MiniLM, epsilon 8 per report.

python scripts/train.py --config configs/padchest_eps8.py

Result: test weighted F1 0.9565 (0.9562 to 0.9566), mean and range over 3 runs.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "padchest_eps1")
    config.privacy.epsilon = 8.0
    config.run.name = "padchest_eps8"
    return config
