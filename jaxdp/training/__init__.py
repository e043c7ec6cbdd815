# SPDX-License-Identifier: Apache-2.0
"""What moves parameters: step, trainer, plan of the stages, mesh, randomness, public start."""
