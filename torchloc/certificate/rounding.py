"""Outward rounding of nonnegative matrices."""

from __future__ import annotations

import scipy.sparse as sp

UNIT = 2.0**-53


def outward(matrix: sp.csr_array, steps: float) -> sp.csr_array:
    """Entries of a nonnegative matrix times 1 + steps · 2⁻⁵³: covers that many roundings."""
    result = sp.csr_array(matrix)
    result.data = result.data * (1.0 + (steps + 2.0) * UNIT)
    return result
