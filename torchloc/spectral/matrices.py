"""Nonnegative matrices, taken in and checked; sums and quotients rounded to the side that is safe.

A sum of k nonnegative products, divided by a positive number, is computed in any order to a
relative error below (k + 2)·2⁻⁵³/(1 − (k + 2)·2⁻⁵³): nothing is subtracted. So a bound is that
value moved outward by the factor 1 ± 2(k + 2)·2⁻⁵³ (Higham, Accuracy and Stability, Lemma 3.1), k
the longest row. This holds in the normal range; where a product may leave it, `underflow` adds what
is lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from torchloc.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNIT = 2.0**-53
_NORMAL = 2.0**-960
_TINY = 2.0**-1070


@dataclass(frozen=True, eq=False)
class Checked:
    """A square nonnegative finite matrix in CSR form, without stored zeros.

    Attributes:
        csr: (n, n) float64.
        terms: the largest number of entries that a row had as it was given, repeated ones counted:
            the k of the rounding bounds.
    """

    csr: sp.csr_array
    terms: int

    @property
    def size(self) -> int:
        """The number n of rows."""
        return int(self.csr.shape[0])


def _entry(array: Any, place: int) -> tuple[int, int]:
    """Row and column of the `place`-th stored entry of a COO array."""
    return int(array.row[place]), int(array.col[place])


def _as_sparse(matrix: Any) -> Any:
    """The input as a real square SciPy sparse array in COO or CSR form, with the user's data."""
    given: Any = matrix
    if not sp.issparse(matrix):
        try:
            given = np.asarray(matrix)
        except ValueError as error:
            raise InputError(f"matrix: not an array of numbers ({error})") from error
    shape = tuple(given.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InputError(f"matrix: shape {shape}; it must be square, (n, n) with n at least 1")
    if given.dtype.kind not in "biuf":
        raise InputError(f"matrix: dtype {given.dtype}; its entries must be real numbers")
    if not sp.issparse(given):
        given = sp.coo_array(given.astype(np.float64))
    elif given.format not in ("csr", "coo"):
        given = given.tocoo()
    return given


def checked(matrix: Any) -> Checked:
    """Take a matrix in: SciPy sparse of any format, or anything NumPy reads; entries ≥ 0.

    The input is not changed. Repeated COO entries are added up.

    Raises:
        InputError: The matrix is not square, is empty, or has an entry that is complex, negative,
            NaN or infinite (the first such entry is named).
    """
    given = _as_sparse(matrix)
    values = np.asarray(given.data, dtype=np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0.0))
    if wrong.any():
        place = int(np.argmax(wrong))
        row, column = _entry(given.tocoo(), place)
        raise InputError(
            f"matrix: entry ({row}, {column}) is {values[place]}; every entry must be a finite "
            f"number of at least 0"
        )
    if given.format == "csr":
        counts = np.diff(given.indptr)
    else:
        counts = np.bincount(given.row, minlength=given.shape[0])
    csr = sp.csr_array(given, dtype=np.float64)
    if not csr.has_canonical_format or (csr.nnz and not csr.data.all()):
        csr = csr.copy()
        csr.sum_duplicates()
        csr.eliminate_zeros()
        if not np.isfinite(csr.data).all():
            raise InputError("matrix: repeated entries add up to more than a float64 holds")
    return Checked(csr, int(counts.max(initial=0)))


def up(value: Any, terms: int) -> Any:
    """A number (or array) no smaller than what was computed as `value` from `terms` terms."""
    moved = np.nextafter(np.multiply(value, 1.0 + 2.0 * (terms + 2) * UNIT), np.inf)
    return np.where(np.equal(value, 0.0), 0.0, moved)


def down(value: Any, terms: int) -> Any:
    """A number (or array) no larger than what was computed as `value` from `terms` terms."""
    moved = np.nextafter(np.multiply(value, 1.0 - 2.0 * (terms + 2) * UNIT), -np.inf)
    return np.maximum(moved, 0.0)


def underflow(least: float, vector: Floats, terms: int, *, moved: bool) -> float:
    """What products of entries (each at least `least`) and `vector` > 0 can lose to underflow.

    Each product, each quotient and, where they were moved by powers of two, each entry is off by at
    most 2⁻¹⁰⁷⁵ beyond its relative error.

    Returns:
        An absolute bound for the error of a quotient (M x)_i / x_i; 0 in the normal range.
    """
    smallest, largest = float(vector.min()), max(float(vector.max()), 1.0)
    if least * smallest >= _NORMAL * largest:
        return 0.0
    if not smallest > 0.0:
        return np.inf
    share = 1.0 / min(smallest, 1.0)
    return (terms + 2) * _TINY * (share * (1.0 + largest) if moved else share)


def norm_rows(matrix: Any) -> float:
    """The largest row sum ‖M‖_∞ ≥ ρ(M), rounded up.

    Raises:
        InputError: As `checked`.

    Example:
        >>> round(norm_rows([[0.5, 0.25], [0.0, 0.25]]), 12)
        0.75
    """
    taken = matrix if isinstance(matrix, Checked) else checked(matrix)
    with np.errstate(over="ignore"):
        return float(up(taken.csr.sum(axis=1).max(), taken.terms))


def norm_columns(matrix: Any) -> float:
    """The largest column sum ‖M‖_1 ≥ ρ(M), rounded up.

    Raises:
        InputError: As `checked`.

    Example:
        >>> round(norm_columns([[0.5, 0.25], [0.0, 0.25]]), 12)
        0.5
    """
    taken = matrix if isinstance(matrix, Checked) else checked(matrix)
    longest = int(np.bincount(taken.csr.indices, minlength=1).max()) + taken.terms
    with np.errstate(over="ignore"):
        return float(up(taken.csr.sum(axis=0).max(), longest))
