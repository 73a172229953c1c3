"""Tables that sites share: found where they are equal, and without effect on any number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation.against import assert_same, check, drawn, evaluation, ring, ring_policy, variants
from evaluation.averages import Setting
from torch import Tensor

from torchloc.closed_loop import PolicyTables
from torchloc.contraction import network
from torchloc.evaluation import numbers
from torchloc.evaluation.local import LocalEvaluation
from torchloc.evaluation.numbers import Columns, Numbers, columns, expanded

Array = np.ndarray


def tables(ids: list[int], seed: int = 0) -> Tensor:
    """(2, 3, B) tables, equal where the ids are."""
    values = np.random.default_rng(seed).normal(size=(2, 3, max(ids) + 1))
    return torch.from_numpy(values[..., ids])


SOME = {
    "all different": list(range(10)),
    "two kinds": [0, 1, 1, 0, 1, 0, 0, 0, 1, 1],
    "one kind": [0] * 10,
    "a single site": [0],
}


@pytest.mark.parametrize("name", SOME)
def test_equal_tables_are_stored_once_where_it_pays(name: str) -> None:
    ids = SOME[name]
    full = tables(ids)
    found = columns(full)
    few = len(set(ids)) <= len(ids) / 2
    assert found.values.shape[-1] == (len(set(ids)) if few else len(ids))
    assert (found.ids is not None) == few
    assert torch.equal(expanded(found, len(ids)), full)


@pytest.mark.parametrize("name", SOME)
def test_tables_of_some_sites(name: str) -> None:
    """Rows that only begin and end like a run of neighbours are no such run."""
    full = tables(SOME[name])
    found = columns(full)
    count = full.shape[-1]
    rows = [[0, 2, 1, 3], [0, 1, 2, 3], [3, 2, 1, 0], [5, 5, 5], [4, 6], [0], list(range(10))]
    for chosen in rows if count > 1 else [[0], [0, 0]]:
        at = np.array(chosen)
        part = found.at(at)
        assert part.shape[-1] in (1, len(at))
        assert torch.equal(part.expand(2, 3, len(at)), full[..., chosen])
        names = found.names(at)
        if names is not None:
            equal = (full[..., chosen, None] == full[..., None, chosen]).flatten(0, 1).all(dim=0)
            assert ((names[:, None] == names) == equal.numpy()).all()


@pytest.mark.parametrize("new", [[0, 1, 2], [0, 0, 0], [0, 1, 1]])
@pytest.mark.parametrize("name", SOME)
def test_new_tables_for_some_sites(name: str, new: list[int]) -> None:
    full = tables(SOME[name])
    found = columns(full)
    kept = full.clone()
    rows = np.array([1, 4, 9]) if full.shape[-1] > 1 else np.array([0])
    values = tables(new, seed=1)[..., : len(rows)]
    put = found.put(rows, values)
    expected = full.clone()
    expected[..., rows] = values
    assert torch.equal(expanded(put, full.shape[-1]), expected)
    assert torch.equal(put.at(np.arange(full.shape[-1])).expand_as(full), expected)
    assert torch.equal(expanded(found, full.shape[-1]), kept)


def test_one_table_for_all_is_broadcast() -> None:
    one = Columns(torch.ones(2, 1), None)
    assert one.at(np.array([7, 3])).shape == (2, 1)
    names = one.names(np.array([7, 3]))
    assert names is not None and names.tolist() == [0, 0]
    assert expanded(one, 5).shape == (2, 5)


# In the engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["two-way", "shared", "drifting"])
@pytest.mark.parametrize(("tables", "odd"), [(1, None), (1, 4), (3, 0)])
def test_equal_sites_are_found_and_change_nothing(
    tables: int | None, odd: int | None, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings whose sites are equal, all but one, or of two kinds.

    With shared actions, and with balls that leave their source behind.
    """
    drifting = shape == "drifting"
    reads, sees = ((1, 3), (1, 2, 3)) if drifting else ((-1, 0, 1), (-1, 0, 1))
    mdp = ring(24, tables=tables, reads=reads, shared=shape == "shared")
    policy = ring_policy(mdp, sees=sees, equal=tables is not None, odd=odd)
    setting: Setting = (2 if shape == "two-way" else 1, "entropy", 0.9)
    local = evaluation(mdp, policy, setting)
    assert all(ball.carried is not drifting for ball in local.balls)
    found = variants(local, policy)
    monkeypatch.setattr(numbers, "_SHARED", 0.0)
    assert_same(evaluation(mdp, policy, setting), policy, found)


def test_a_ring_of_equal_sites_is_one_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is that of one ball, and all agents get the same numbers to the last bit."""
    mdp = ring(24, tables=1)
    local = LocalEvaluation(mdp, ring_policy(mdp, equal=True), 2)
    policy = ring_policy(mdp, equal=True)
    tables = Numbers(local.model, local.sites, local.sources, PolicyTables.read(policy), range(9))
    assert [laws.values.shape[-1] for laws in tables.laws] == [1]
    assert [kernels.values.shape[-1] for kernels in tables.kernels] == [1]
    assert [sources.values.shape[-1] for sources in tables.sources] == [1]
    lengths = []
    plain = network.Network.gradients
    monkeypatch.setattr(
        network.Network,
        "gradients",
        lambda *a: lengths.append(max(x.shape[-1] for x in a[1])) or plain(*a),
    )
    found = local.logits(policy)
    assert lengths[0] == 1
    assert all(torch.equal(found[k], found[0]) for k in range(24))


@pytest.mark.parametrize("seed", range(0, 16, 4))
def test_random_models_with_nothing_shared(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "_SHARED", 0.0)
    check(*drawn(seed), [(2, "entropy", 0.7)], seed)
