# SPDX-License-Identifier: Apache-2.0
"""Throughput side by side with peers, on one machine; extras `baseline` and `audit`.

`contenders` names who takes part, `inputs` makes what all of them train on, `worker` is the process
each runs in (`jax_side`, `torch_side`), `rounds` lets them step in turn, `summary` makes medians,
ratios and tables of it, `flops` says what their arithmetic amounts to. `startup` times the way to
the first step of `scripts/train.py`.
"""
