# SPDX-License-Identifier: Apache-2.0
"""Many runs as one: members from axes, groups that share samples, one cost, one table."""
