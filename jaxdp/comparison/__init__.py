# SPDX-License-Identifier: Apache-2.0
"""jaxdp and the PyTorch baseline on the same job: arithmetic, trajectories, whole runs."""
