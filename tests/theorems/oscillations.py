"""δ of functions of the joint state."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def oscillation(values: Tensor) -> np.ndarray:
    """(*S) → (N,): largest change of a function of the joint state with one coordinate."""
    return np.array([float((values.amax(i) - values.amin(i)).max()) for i in range(values.ndim)])
