# SPDX-License-Identifier: Apache-2.0
"""Compares jaxdp with the same training in PyTorch: transformers, PEFT and Opacus.

    python scripts/compare_pytorch.py --config configs/openi_plain_eps8.py --level gradients

The same as `jaxdp compare`; --help shows all flags.
"""

from jaxdp.commands import run

if __name__ == "__main__":
    run("compare")
