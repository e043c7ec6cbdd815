# SPDX-License-Identifier: Apache-2.0
"""The training step, stages, loop, checkpoints and the run directory."""
