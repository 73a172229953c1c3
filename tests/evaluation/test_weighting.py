"""Product laws and given states: what they hold, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torchloc.errors import InputError
from torchloc.evaluation.weighting import ProductLaw, as_product_law, as_states

SIZES = np.array([2, 3, 1, 2])
LAWS = [[0.25, 0.75], [0.5, 0.3, 0.2], [1.0], [0.9, 0.1]]
PADDED = np.array([[0.25, 0.75, 0.0], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.9, 0.1, 0.0]])
CPU = torch.device("cpu")


def law_of(weighting: Any, dtype: torch.dtype = torch.float64) -> ProductLaw:
    return as_product_law(weighting, SIZES, dtype=dtype, device=CPU)


@pytest.mark.parametrize(
    "weighting",
    [
        LAWS,
        tuple(np.array(law) for law in LAWS),
        [torch.tensor(law, dtype=torch.float64) for law in LAWS],
        PADDED,
        torch.from_numpy(PADDED),
    ],
    ids=["lists", "arrays", "tensors", "padded array", "padded tensor"],
)
def test_every_way_of_giving_a_law(weighting: Any) -> None:
    law = law_of(weighting)
    assert law.columns is not None
    np.testing.assert_array_equal(law.columns.numpy(), PADDED.T)
    scope = [np.array([1, 1]), np.array([3, 0])]
    first, second = law.factors(scope, (3, 2))
    assert first.T.tolist() == [LAWS[1], LAWS[1]]
    assert second.T.tolist() == [LAWS[3], LAWS[0]]
    assert law.scale((3, 2)) == 1.0
    assert law_of(weighting, torch.float32).factors(scope, (3, 2))[0].dtype == torch.float32


def test_a_law_that_was_given_is_not_changed_or_kept() -> None:
    given = torch.from_numpy(PADDED.copy())
    law = law_of(given)
    given.fill_(0.0)
    assert law.columns is not None and torch.equal(law.columns, torch.from_numpy(PADDED.T))


@pytest.mark.parametrize("weighting", ["uniform", LAWS])
def test_joint_laws_are_products(weighting: str | Sequence[Sequence[float]]) -> None:
    law = law_of(weighting)
    each = LAWS if weighting != "uniform" else [[1 / size] * int(size) for size in SIZES]
    like = torch.zeros(1, dtype=torch.float64)
    joint = law.joint(np.array([[1, 0], [1, 3]]), (3, 2), like)
    assert joint.shape in ((3, 2, 2), (3, 2, 1))
    expected = torch.stack(
        [
            torch.outer(*(torch.tensor(each[i], dtype=torch.float64) for i in pair))
            for pair in ((1, 0), (1, 3))
        ],
        dim=-1,
    )
    torch.testing.assert_close(joint.expand(3, 2, 2), expected, rtol=0, atol=1e-15)
    assert float((joint.expand(3, 2, 2).sum(dim=(0, 1)) - 1).abs().max()) <= 1e-15
    empty = law.joint(np.zeros((4, 0), dtype=np.int64), (), like)
    assert empty.shape[-1] in (1, 4) and bool((empty == 1.0).all())


def test_uniform_needs_no_factors() -> None:
    law = law_of("uniform")
    assert law.columns is None and law.factors([np.array([0])], (2,)) == []
    assert law.scale((2, 3)) == 1 / 6 and law.scale(()) == 1.0


def replaced(i: int, law: Any) -> list[Any]:
    return [*LAWS[:i], law, *LAWS[i + 1 :]]


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        ("stationary", "weighting is 'stationary'; choose uniform or rollout, or give one law"),
        (None, "weighting"),
        (0.5, "weighting"),
        (LAWS[:3], "weighting has 3 laws, but the model has 4 coordinates; give one each"),
        ([], "weighting has 0 laws"),
        (PADDED[:, :2], r"weighting has shape \(4, 2\); it must be \(4, 3\), padded with zeros"),
        (PADDED[:3], "weighting has 3 laws"),
        (PADDED[:, :, None], r"weighting of coordinate 0 has shape \(3, 1\)"),
        (PADDED[:, 0], r"weighting of coordinate 0 has shape \(\)"),
        (replaced(1, [0.5, 0.5]), r"coordinate 1 has shape \(2,\), but the coordinate has 3 st"),
        (replaced(1, [0.5, 0.5, 0.0]), r"coordinate 1 is \[0.5, 0.5, 0.0\]; it must be 3 positive"),
        (replaced(0, [0.5, 0.6]), r"weighting of coordinate 0 is .* 2 positive numbers that sum"),
        (replaced(0, [1.5, -0.5]), "weighting of coordinate 0 is .* positive"),
        (replaced(3, [float("nan"), 0.5]), r"weighting of coordinate 3 is \[nan, 0.5"),
        (replaced(3, [float("inf"), 0.5]), r"weighting of coordinate 3 is \[inf, 0.5"),
        (replaced(3, [0.5, "half"]), "weighting of coordinate 3"),
        (np.where(PADDED == 0.3, 0.0, PADDED), "weighting of coordinate 1 is .* 3 positive"),
        (
            np.where(PADDED == [0.25, 0.75, 0.0], [0.25, 0.65, 0.1], PADDED),
            "weighting of coordinate 0 is .* 2 pos",
        ),
        (torch.from_numpy(PADDED) * torch.nan, "weighting of coordinate 0 is .*nan"),
    ],
)
def test_laws_that_are_refused(weighting: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        law_of(weighting)


def test_states_that_fit() -> None:
    rows = [[0, 2, 0, 1], [1, 0, 0, 0]]
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.float64):
        states = as_states(torch.tensor(rows, dtype=dtype), SIZES, CPU)
        assert states.dtype == torch.int64 and states.tolist() == rows


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (torch.zeros(4), r"states has shape \(4,\); it must be \(R, 4\), one row a state"),
        (torch.zeros(4, 2), r"states has shape \(4, 2\); it must be \(R, 4\)"),
        (torch.zeros(0, 4), r"states has shape \(0, 4\)"),
        (torch.zeros(1, 2, 4), r"states has shape \(1, 2, 4\)"),
        (
            torch.tensor([[0, 0, 0, 0], [1, 3, 0, 0]]),
            r"states\[1, 1\] is 3; coordinate 1 has values 0",
        ),
        (torch.tensor([[0, 0, 1, 0]]), r"states\[0, 2\] is 1; coordinate 2 has values 0 to 0"),
        (torch.tensor([[0, -1, 0, 0]]), r"states\[0, 1\] is -1; coordinate 1 has values 0 to 2"),
        (torch.tensor([[0.0, 0.5, 0.0, 0.0]]), r"states\[0, 1\] is 0.5"),
        (torch.full((1, 4), torch.nan), "states"),
    ],
)
def test_states_that_are_refused(states: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_states(states, SIZES, CPU)
