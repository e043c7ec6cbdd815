# SPDX-License-Identifier: Apache-2.0
"""The release bundle: everything that may be shared under the statement, and nothing else."""


def write_release(*a):
    pass
