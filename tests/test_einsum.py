"""einsum with names for axes and a path that is found once."""

from __future__ import annotations

import string

import numpy as np
import pytest
import torch

from torchloc.einsum import _expression, einsum


def letters(names: tuple[int, ...]) -> str:
    return "".join(string.ascii_letters[name] for name in names)


@pytest.mark.parametrize("seed", range(12))
def test_matches_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, size=6)
    terms = [tuple(rng.permutation(6)[: rng.integers(0, 4)].tolist()) for _ in range(4)]
    used = sorted({name for term in terms for name in term})
    out = tuple(int(name) for name in rng.permutation(used)[: rng.integers(0, len(used) + 1)])
    tables = [rng.normal(size=sizes[list(term)]) for term in terms]
    expected = np.einsum(f"{','.join(map(letters, terms))}->{letters(out)}", *tables)
    # Names are any hashable things: numbers, words, pairs.
    kinds = [lambda x: x, lambda x: f"axis {x}", lambda x: ("s", x)]
    for name in kinds:
        operands = [
            (torch.from_numpy(table), [name(x) for x in term])
            for table, term in zip(tables, terms, strict=True)
        ]
        result = einsum(operands, [name(x) for x in out])
        assert result.dtype == torch.float64 and result.shape == expected.shape
        # Four factors and at most 3⁶ terms of size about 1.
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_more_axes_than_letters() -> None:
    chain = [torch.rand(2, 2, dtype=torch.float64) for _ in range(54)]
    result = einsum([(table, (i, i + 1)) for i, table in enumerate(chain)], (0, 54))
    torch.testing.assert_close(result, torch.linalg.multi_dot(chain))


def test_one_operand_and_scalars() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(einsum([(table, "ij")], "ji"), table.T)
    assert einsum([(table, "ij")], "").item() == 15.0
    assert einsum([(torch.tensor(2.0), ()), (torch.tensor(4.0), ())], ()).item() == 8.0


def test_gradients_pass() -> None:
    table = torch.ones(2, 3, requires_grad=True)
    einsum([(table, "ij"), (torch.arange(3.0), "j")], "").backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[0.0, 1.0, 2.0]] * 2


def test_the_path_is_found_once_for_a_structure_and_its_shapes() -> None:
    table = torch.ones(5, 7, 3)

    def call(names: str) -> None:
        einsum([(table, names[:3]), (table, names[:3])], names[:1])

    before = _expression.cache_info()
    call("ijk")
    call("abc")  # other names, same structure
    call("jik")
    after = _expression.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


def test_an_unknown_axis_of_the_result_is_refused() -> None:
    with pytest.raises(KeyError, match="k"):
        einsum([(torch.ones(2), "i")], "k")
