# SPDX-License-Identifier: Apache-2.0
"""Attacks on our own training: an empirical lower bound on epsilon beside the claimed one."""
