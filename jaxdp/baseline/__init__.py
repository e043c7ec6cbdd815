# SPDX-License-Identifier: Apache-2.0
"""The same training in PyTorch (transformers, PEFT, Opacus), to compare with; extra `baseline`.

Knows nothing of JAX: all that it gets is a `job.Job`. Nothing else of jaxdp but `comparison`, which
makes the jobs, imports it.
"""
