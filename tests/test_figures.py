"""Pictures of matrices: what is drawn is the matrix."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.sparse as sp

from torchloc.figures import LARGEST_MAP, coarse, heat_map


def drawn(figure) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The numbers of the picture."""
    (image,) = figure.axes[0].images
    return image.get_array().filled(np.nan)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (LARGEST_MAP, LARGEST_MAP)])
def test_small_matrices_are_drawn_cell_by_cell(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    dense = rng.random(shape) * (rng.random(shape) < 0.5)
    assert (coarse(sp.csr_array(dense)) == dense).all()
    assert (drawn(heat_map(sp.csr_array(dense), "H_exact")) == dense).all()


@pytest.mark.parametrize("shape", [(257, 257), (1000, 300), (10, 2000), (513, 1)])
def test_large_matrices_are_drawn_by_block_maxima(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    dense = rng.random(shape) * (rng.random(shape) < 0.01)
    blocks = coarse(sp.csr_array(dense))
    assert max(blocks.shape) <= LARGEST_MAP
    tall, wide = (-(-size // LARGEST_MAP) for size in shape)
    for row, column in np.ndindex(blocks.shape):
        cell = dense[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
        assert blocks[row, column] == cell.max()
    figure = heat_map(sp.csr_array(dense), "Pi_exact")
    assert f"block maxima of {shape[0]} rows" in figure.axes[0].get_title()


def test_ticks_count_coordinates_and_not_blocks() -> None:
    figure = heat_map(sp.csr_array((1000, 600)), "H_paper")
    (image,) = figure.axes[0].images
    assert tuple(image.get_extent()) == (-0.5, 599.5, 999.5, -0.5)
    (image,) = heat_map(sp.csr_array((2, 3)), "L").axes[0].images
    assert tuple(image.get_extent()) == (-0.5, 2.5, 1.5, -0.5)


def test_a_million_coordinates_are_drawn_without_a_dense_matrix() -> None:
    n = 10**6
    matrix = sp.diags_array(np.linspace(0.0, 1.0, n)).tocsr()
    blocks = coarse(matrix)
    assert blocks.shape == (256, 256) and blocks.max() == 1.0
    assert np.count_nonzero(blocks - np.diag(np.diag(blocks))) == 0


def test_infinite_entries_are_left_blank_and_zero_matrices_are_drawn() -> None:
    matrix = sp.csr_array(np.array([[0.0, np.inf], [2.0, 1.0]]))
    figure = heat_map(matrix, "L")
    shown = drawn(figure)
    assert np.isnan(shown[0, 1]) and shown[1, 0] == 2.0
    assert figure.axes[0].images[0].get_clim() == (0.0, 2.0)
    empty = heat_map(sp.csr_array((3, 3)), "H_exact")
    assert (drawn(empty) == 0.0).all() and empty.axes[0].images[0].get_clim() == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_models_without_agents_have_a_picture(shape: tuple[int, int]) -> None:
    heat_map(sp.csr_array(shape), "Pi_exact").savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("name", "title", "down"),
    [
        ("H_coupled_2", "H coupled 2", "influenced: coordinate j"),
        ("Pi_exact", "Pi exact", "agent k"),
        ("L", "L", "agent k"),
    ],
)
def test_names_say_what_the_axes_are(name: str, title: str, down: str) -> None:
    figure = heat_map(sp.csr_array(np.eye(2)), name)
    axes = figure.axes[0]
    assert axes.get_title() == title and axes.get_ylabel() == down
    assert axes.get_xlabel() == "cause: coordinate i"
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    assert stream.getvalue().startswith(b"\x89PNG")
