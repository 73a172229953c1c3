"""What RDDL's operators and functions compute, entry by entry, as the library's simulator does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from torchloc.errors import InputError
from torchloc.interop.rddl.tables import Values

Function = Callable[..., Any]


def _whole(function: Function) -> Function:
    return lambda *x: function(*x).astype(np.int64)


def _power(x: Values, y: Values) -> Values:
    whole = np.issubdtype(x.dtype, np.integer) and np.issubdtype(y.dtype, np.integer)
    if whole and (y < 0).any():
        raise InputError(
            f"pow[x, {int(y.min())}] of a whole number x is no whole number; write pow[1.0 * x, y]"
        )
    return np.power(x, y)


ARITHMETIC: dict[str, Function] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}
RELATIONAL: dict[str, Function] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "<": np.less,
    ">": np.greater,
    "==": np.equal,
    "~=": np.not_equal,
}
LOGICAL: dict[str, Function] = {
    "~": np.logical_xor,
    "=>": lambda x, y: ~x | y,
    "<=>": np.equal,
}
AGGREGATIONS: dict[str, Function] = {
    "sum": np.add,
    "avg": np.add,
    "prod": np.multiply,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "forall": np.logical_and,
    "exists": np.logical_or,
}
UNARY: dict[str, tuple[Function, str | None]] = {
    "abs": (np.abs, None),
    "sgn": (_whole(np.sign), "int"),
    "round": (_whole(np.round), "int"),
    "floor": (_whole(np.floor), "int"),
    "ceil": (_whole(np.ceil), "int"),
    "cos": (np.cos, "real"),
    "sin": (np.sin, "real"),
    "tan": (np.tan, "real"),
    "acos": (np.arccos, "real"),
    "asin": (np.arcsin, "real"),
    "atan": (np.arctan, "real"),
    "cosh": (np.cosh, "real"),
    "sinh": (np.sinh, "real"),
    "tanh": (np.tanh, "real"),
    "exp": (np.exp, "real"),
    "ln": (np.log, "real"),
    "sqrt": (np.sqrt, "real"),
    "lngamma": (special.gammaln, "real"),
    "gamma": (special.gamma, "real"),
}
"""Functions of one argument, and the kind of their values; None: the kind of the argument."""
BINARY: dict[str, tuple[Function, str | None]] = {
    "div": (_whole(np.floor_divide), "int"),
    "mod": (_whole(np.mod), "int"),
    "fmod": (np.mod, None),
    "min": (np.minimum, None),
    "max": (np.maximum, None),
    "pow": (_power, None),
    "log": (lambda x, y: np.log(x) / np.log(y), "real"),
    "hypot": (np.hypot, "real"),
}
"""Functions of two arguments, and the kind of their values; None: the wider of the arguments'."""
