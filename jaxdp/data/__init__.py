# SPDX-License-Identifier: Apache-2.0
"""Reports in: one loader per source, one in-memory form, tokens, microbatch shapes."""
