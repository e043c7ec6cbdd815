# SPDX-License-Identifier: Apache-2.0
"""The same training by others, to compare with: PyTorch (transformers, PEFT, Opacus) and
JAX-Privacy; extras `baseline` and `audit`.

`job` is what every side is given and gives back, `side` what each can do, in a `process` of its
own; `jax_side`, `torch_side` (with `torch_model`) and `jax_privacy_side` are the sides. The torch
side imports no jax, so that its memory and its time are its own.

`start` makes a job of a configuration, `comparison` holds one side against the other: gradients,
steps, whole runs. `benchmark` lets `contenders` step in turn (`rounds`) on the same `inputs`,
`summary` makes medians, ratios and tables of that, `flops` says what their arithmetic amounts to,
`startup` times the way to the first step of `scripts/train.py`.
"""
