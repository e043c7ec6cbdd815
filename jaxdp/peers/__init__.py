# SPDX-License-Identifier: Apache-2.0
"""The same training by others, to compare with: PyTorch (transformers, PEFT, Opacus) and
JAX-Privacy; extras `baseline` and `audit`.

`start` makes a `job` of a configuration; `jax_side`, `torch_side` (with `torch_model`) and
`jax_privacy_side` train it, each a `side` in a `process` of its own. The torch side imports no jax,
so that its memory and its time are its own; only it and `comparison` import torch.

`comparison` holds one side against the other: gradients, steps, whole runs; `tables` shows that.
`benchmark` lets `contenders` step in turn on jobs from `inputs`, and `summary` makes medians,
ratios and a table of it; `flops` and `machine` say what their arithmetic amounts to, and of what.
`startup` times the way to the first step of `scripts/train.py`.
"""
