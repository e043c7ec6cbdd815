# SPDX-License-Identifier: Apache-2.0
"""The same training by others, to compare with: PyTorch (transformers, PEFT, Opacus) and
JAX-Privacy; extras `baseline` and `audit`.

`job` is what every side is given and gives back, `side` what each can do, in a `process` of its
own; `jax_side`, `torch_side` (with `torch_model`) and `jax_privacy_side` are the sides. The torch
side imports no jax, so that its memory and its time are its own, and only it and `comparison`
import torch.

`start` makes a job of a configuration, `comparison` and `runs` hold one side against the other:
gradients, steps, whole runs. `benchmark` lets `contenders` step in turn on the same `inputs`,
`summary` makes medians, ratios and tables of that, `flops` and `machine` say what their arithmetic
amounts to, and of what. `startup` times the way to the first step of `scripts/train.py`.
"""
