# SPDX-License-Identifier: Apache-2.0
"""jaxdp: differentially private LoRA fine-tuning of BERT-family models on radiology reports.

from jaxdp import PrivateTextClassifier, load, push_to_hub
"""

import importlib

__version__ = "0.16.1"

_HOMES = {"PrivateTextClassifier": "estimator", "load": "released", "push_to_hub": "released"}
"""Name -> the module that has it, imported when it is first asked for."""
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
