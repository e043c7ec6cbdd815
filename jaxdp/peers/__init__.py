# SPDX-License-Identifier: Apache-2.0
"""The same training by others, to compare with: PyTorch (transformers, PEFT, Opacus) and
JAX-Privacy; extras `baseline` and `audit`.

`start` makes a `job` of a configuration, and each side trains it in a process of its own. The torch
side imports no jax, so that its memory and its time are its own; only it and `comparison` import
torch.
"""
