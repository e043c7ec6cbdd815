# SPDX-License-Identifier: Apache-2.0
"""A whole run: what it does in order, what it leaves behind, and how it survives."""
