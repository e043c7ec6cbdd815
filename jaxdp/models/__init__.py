# SPDX-License-Identifier: Apache-2.0
"""Backbones, LoRA, and weights in and out. Imports nothing else of jaxdp."""
