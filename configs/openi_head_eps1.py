# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, a head alone on frozen features, epsilon 1 at delta 1e-5 per report.

python scripts/train.py --config configs/openi_head_eps1.py

Result: see below.
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_head_eps8")
    config.privacy.epsilon = 1.0
    config.run.name = "openi_head_eps1"
    return config
