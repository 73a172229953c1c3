"""Matrices as pictures. matplotlib is imported late: it is slow, and most runs draw little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_MAP = 256
"""Rows of the largest matrix that is drawn cell by cell; larger ones are shown by block maxima."""

_AXES = {
    "H": ("cause: coordinate i", "influenced: coordinate j"),
    "Pi": ("cause: coordinate i", "agent k"),
    "L": ("cause: coordinate i", "agent k"),
}


def heat_map(matrix: Any, name: str) -> Figure:
    """A matrix as a picture; above `LARGEST_MAP` rows or columns, block maxima.

    Args:
        matrix: (rows, columns) sparse.
        name: `H_…`, `Pi_…` or `L`: says what the axes are.
    """
    from matplotlib.figure import Figure

    dense = coarse(matrix)
    tall, wide = map(_block, matrix.shape)
    shown = np.where(np.isfinite(dense), dense, np.nan)
    figure = Figure(figsize=(4.6, 4.0))
    axes = figure.add_axes((0.14, 0.13, 0.8, 0.77))
    largest = float(np.nanmax(shown, initial=0.0)) or 1.0
    image = axes.imshow(
        shown,
        cmap="viridis",
        vmin=0.0,
        vmax=largest,
        interpolation="nearest",
        aspect="auto",
        # The ticks count coordinates where a cell is a block of them.
        extent=(-0.5, dense.shape[1] * wide - 0.5, dense.shape[0] * tall - 0.5, -0.5),
    )
    figure.colorbar(image, ax=axes)
    across, down = _AXES[name.split("_")[0]]
    axes.set(xlabel=across, ylabel=down, title=name.replace("_", " "))
    if dense.shape != matrix.shape:
        axes.set_title(f"{name.replace('_', ' ')} (block maxima of {matrix.shape[0]} rows)")
    axes.locator_params(integer=True)
    return figure


def coarse(matrix: Any) -> np.ndarray:
    """A sparse matrix as a dense one of at most `LARGEST_MAP` rows and columns, by block maxima."""
    coo = matrix.tocoo()
    steps = list(map(_block, matrix.shape))
    shape = [max(-(-size // step), 1) for size, step in zip(matrix.shape, steps, strict=True)]
    dense = np.zeros(shape)
    np.maximum.at(dense, (coo.coords[0] // steps[0], coo.coords[1] // steps[1]), coo.data)
    return dense


def _block(size: int) -> int:
    """How many rows or columns one cell stands for."""
    return max(-(-size // LARGEST_MAP), 1)
