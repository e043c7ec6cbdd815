# SPDX-License-Identifier: Apache-2.0
"""What finished runs say together. Reads run directories; trains nothing."""
