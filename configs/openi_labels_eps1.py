# SPDX-License-Identifier: Apache-2.0
"""Open-I, MiniLM, epsilon 1 per report, without a phrasebook: from the labels' names alone.

python scripts/train.py --config configs/openi_labels_eps1.py

Result: test weighted F1 0.764 (0.760 to 0.769),
mean and range of three runs (docs/results.md).
"""

from jaxdp.config import inherit


def get_config():
    config = inherit(__file__, "openi_eps1")
    config.warm_start.phrasebook = "labels"
    config.warm_start.lexicon = False  # see openi_labels_eps8
    config.run.name = "openi_labels_eps1"
    return config
