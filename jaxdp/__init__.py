# SPDX-License-Identifier: Apache-2.0
"""jaxdp: differentially private LoRA fine-tuning of BERT-family models on radiology reports."""

__version__ = "0.6.0"
