"""Closed-loop tables against brute force, and how sites are sorted into classes."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence

import numpy as np
import pytest
import reference as ref
import torch
from torch import Tensor
from twins import draw, twin_policy

import torchloc as tl
from torchloc import closed_loop as room
from torchloc.closed_loop import (
    LocalClass,
    PolicyTables,
    entropy_terms,
    local_classes,
    reward_terms,
)

# Sums of at most 27 products of probabilities with entries of size about 1.
ATOL = 1e-14
Array = np.ndarray


def _brute(model: ref.Model, policy: ref.Policy, term: ref.Term, keep: Sequence[int]) -> Array:
    """A term at every joint state, actions but those of `keep` averaged: (|S|, *A_keep, …)."""
    states, actions, table = term
    rows = table[tuple(model.states[:, i] for i in states)]
    rows = np.broadcast_to(rows, (len(model.states), *table.shape[len(states) :]))
    axes = string.ascii_lowercase[1 : 1 + len(actions)]
    operands, terms = [rows], [f"a{axes}..."]
    for at, k in enumerate(actions):
        if at not in keep:
            operands.append(ref.agent_policy(model, policy, k))
            terms.append(f"a{axes[at]}")
    return np.einsum(f"{','.join(terms)}->a{''.join(axes[at] for at in keep)}...", *operands)


def _spread(model: ref.Model, union: Array, values: Array) -> Array:
    """Aligned values (*S_union or 1, …) of one site at every joint state: (|S|, …)."""
    index = tuple(
        model.states[:, i] if values.shape[axis] > 1 else np.zeros(len(model.states), dtype=int)
        for axis, i in enumerate(union.tolist())
    )
    return np.broadcast_to(values[index], (len(model.states), *values.shape[len(union) :]))


def _keeps(q: int) -> list[tuple[int, ...]]:
    """Every selection of the q actions, in every order."""
    return [keep for size in range(q + 1) for keep in itertools.permutations(range(q), size)]


def _assert_matches(
    model: ref.Model, policy: ref.Policy, mdp: tl.FactoredMDP, tables: PolicyTables
) -> list[LocalClass]:
    classes = []
    for batch in mdp.kernels:
        rows = []
        for local in local_classes(batch, tables):
            rows += local.rows.tolist()
            classes.append(local)
            for keep in _keeps(len(local.n_actions)):
                result = local.averaged(tables, keep)
                assert len(result) in (1, len(local))
                _assert_axes(local, result, local.averaged(tables, keep, align=False), keep)
                for b, row in enumerate(local.rows):
                    term = model.kernels[int(batch.coordinates[row])]
                    mine = _spread(
                        model, local.union[b], result[b if len(result) > 1 else 0].numpy()
                    )
                    expected = _brute(model, policy, term, keep)
                    np.testing.assert_allclose(mine, expected, rtol=0, atol=ATOL, strict=True)
        assert sorted(rows) == list(range(len(batch)))
    return classes


def _assert_axes(local: LocalClass, aligned: Tensor, dense: Tensor, keep: Sequence[int]) -> None:
    """With `align` an axis a union coordinate, without only those that something reads."""
    kept = [local.n_actions[k] for k in keep]
    seen = set(range(local.n_states))
    seen.update(*(scope for k, scope in enumerate(local.scopes) if k not in keep))
    sizes = [size if i in seen else 1 for i, size in enumerate(local.sizes)]
    assert list(aligned.shape[1:-1]) == [*sizes, *kept]
    assert list(dense.shape[1:-1]) == [*(local.sizes[i] for i in sorted(seen)), *kept]
    assert torch.equal(aligned.reshape(dense.shape), dense)


@pytest.mark.parametrize("seed", range(40))
def test_random_models_against_brute_force(seed: int) -> None:
    """Overlapping scopes, parents that agents see too, sizes from 1."""
    model, policy, mdp, twin = draw(
        seed, sizes=(1, 3), n_agents=(1, 3), policy={"minus_infinity": 0.3 * (seed % 2)}
    )
    _assert_matches(model, policy, mdp, PolicyTables.read(twin))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_batches_against_brute_force(seed: int, shared: bool) -> None:
    """A ring from one batch: equal kernels, but scopes that overlap the parents in many ways."""
    n = 5
    rng = np.random.default_rng(seed)
    sites = np.arange(n)
    states = np.stack([(sites - 1) % n, sites], axis=1)
    actions = np.stack([sites, (sites + 2) % n], axis=1)
    table = rng.dirichlet(np.ones(2), (1 if shared else n, 2, 2, 2, 2))
    batch = tl.KernelBatch(sites, states, actions, table)
    mdp = tl.FactoredMDP([2] * n, [2] * n, [batch], [])
    kernels = [(tuple(states[j]), tuple(actions[j]), table[0 if shared else j]) for j in range(n)]
    model = ref.Model((2,) * n, (2,) * n, kernels, [])
    scopes = [tuple(rng.permutation(n)[: rng.integers(3)].tolist()) for _ in range(n)]
    scopes[0] = (0, n - 1)
    scopes[1] = (1, 0)
    policy = ref.random_policy(rng, model, scopes=scopes)
    tables = PolicyTables.read(twin_policy(mdp, policy))
    classes = _assert_matches(model, policy, mdp, tables)
    assert len(classes) > 1
    for local in classes:
        assert len(local.table) == (1 if shared else len(local))
        assert len(local.averaged(tables, (1, 0))) == len(local.table)


def test_translation_invariant_rings_are_one_class() -> None:
    n = 6
    sites = np.arange(n)
    states = np.stack([(sites - 1) % n, sites], axis=1)
    table = np.random.default_rng(0).dirichlet(np.ones(2), (1, 2, 2, 3))
    batch = tl.KernelBatch(sites, states, sites[:, None], table)
    mdp = tl.FactoredMDP([2] * n, [3] * n, [batch], [])
    policy = tl.SoftmaxPolicy.tabular(mdp, np.stack([sites, (sites + 1) % n], axis=1), scale=1.0)
    tables = PolicyTables.read(policy)
    (local,) = local_classes(batch, tables)
    assert local.rows.tolist() == sites.tolist()
    assert local.sizes == (2, 2, 2) and local.n_states == 2 and local.scopes == ((1, 2),)
    np.testing.assert_array_equal(
        local.union, np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1)
    )
    result = local.averaged(tables)
    for b in range(n):
        expected = torch.einsum("pcax,cna->pcnx", torch.from_numpy(table[0]), tables.law(b))
        torch.testing.assert_close(result[b], expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("seed", range(10))
def test_flags_are_equal_within_a_class(seed: int) -> None:
    _, _, mdp, twin = draw(seed, n_coordinates=(3, 4), n_agents=(2, 3))
    tables = PolicyTables.read(twin)
    flag = np.random.default_rng(seed).integers(2, size=mdp.n_agents)
    for batch in mdp.kernels:
        rows = []
        for local in local_classes(batch, tables, flag[batch.actions]):
            rows += local.rows.tolist()
            assert local.flags == tuple(flag[local.agents[0]])
            assert (flag[local.agents] == flag[local.agents[0]]).all()
            assert (tables.group_of[local.agents] == tables.group_of[local.agents[0]]).all()
        assert sorted(rows) == list(range(len(batch)))


def test_nothing_is_averaged_where_nothing_acts() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(2), (1, 2))
    batch = tl.KernelBatch([0, 1], [[1], [0]], np.zeros((2, 0), dtype=int), table)
    mdp = tl.FactoredMDP([2, 2], [], [batch], [])
    tables = PolicyTables.read(tl.SoftmaxPolicy.tabular(mdp, []))
    (local,) = local_classes(batch, tables)
    assert local.agents.shape == (2, 0) and local.union.tolist() == [[1], [0]]
    assert torch.equal(local.averaged(tables), torch.from_numpy(table))


def _wide() -> tuple[LocalClass, PolicyTables]:
    """s'_0 reads s_0, a_0 (who sees 1, 2) and a_1 (who sees 3, 4, 5): 2⁶ states, two next values."""
    table = np.random.default_rng(0).dirichlet(np.ones(2), (2, 2, 3))
    kernels = [tl.LocalKernel((0,), (0, 1), table)]
    kernels += [tl.LocalKernel((), (), [0.5, 0.5]) for _ in range(5)]
    mdp = tl.FactoredMDP([2] * 6, [2, 3], kernels, [])
    tables = PolicyTables.read(tl.SoftmaxPolicy.tabular(mdp, [(1, 2), (3, 4, 5)]))
    batch = next(batch for batch in mdp.kernels if batch.actions.shape[1])
    (local,) = local_classes(batch, tables)
    return local, tables


@pytest.mark.parametrize(
    ("keep", "entries", "agents"),
    [((), 128, "[0, 1]"), ((0,), 2**4 * 2 * 2, "[1]"), ((1,), 2**3 * 3 * 2, "[0]")],
)
def test_budget_counts_what_is_formed(
    keep: tuple[int, ...], entries: int, agents: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, tables = _wide()
    monkeypatch.setattr(room, "ENTRY_BUDGET", entries)
    assert local.averaged(tables, keep).numel() == entries
    monkeypatch.setattr(room, "ENTRY_BUDGET", entries - 1)
    with pytest.raises(tl.BudgetError) as caught:
        local.averaged(tables, keep)
    message = str(caught.value)
    parts = (f"agents {agents}", f"{entries} entries, {8 * entries} bytes", "shrink the scopes")
    assert all(part in message for part in parts), message


# The policy's tables --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_tables_look_up_laws_by_agent(seed: int) -> None:
    _, _, _, twin = draw(seed, n_agents=(2, 3))
    tables = PolicyTables.read(twin)
    for k in range(twin.n_agents):
        assert torch.equal(tables.law(k), twin.probabilities(k))
    for group in twin.groups:
        agents = np.concatenate([group.agents[::-1], group.agents[:1]])
        laws = torch.stack([twin.probabilities(int(k)) for k in agents])
        assert torch.equal(tables.of_agents(agents), laws)


def test_tables_are_a_snapshot() -> None:
    _, _, _, twin = draw(3, n_agents=(2, 2))
    tables = PolicyTables.read(twin)
    before = [tables.law(k).clone() for k in range(2)]
    temperature = tables.temperature.tolist()
    twin.set_temperature(17.0)
    for parameter in twin.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(tables.law(k), law) for k, law in enumerate(before))
    assert tables.temperature.tolist() == temperature


# Reward and entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_reward_and_entropy_terms_sum_to_the_closed_loop_reward(seed: int) -> None:
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.3 * (seed % 2)})
    tables = PolicyTables.read(twin)
    totals = []
    for terms in (reward_terms(mdp, tables), entropy_terms(tables)):
        total = np.zeros(len(model.states))
        for union, values in terms:
            for b, coordinates in enumerate(union):
                row = values[b if len(values) > 1 else 0].numpy()
                total += _spread(model, coordinates, row)
        totals.append(total)
    np.testing.assert_allclose(totals[0], ref.policy_reward(model, policy), rtol=0, atol=1e-13)
    bonus = [t * ref.agent_entropy(model, policy, k) for k, t in enumerate(policy.temperature)]
    # Temperatures up to some tens; x log x loses as many roundings as log x has units.
    scale = 1.0 + float(np.max(policy.temperature))
    np.testing.assert_allclose(totals[1], np.sum(bonus, axis=0), rtol=0, atol=1e-13 * scale)


def test_entropy_of_forbidden_actions_is_zero() -> None:
    mdp = tl.FactoredMDP([2], [3], [tl.LocalKernel((), (), [0.5, 0.5])], [])
    logits = [[0.0, -np.inf, -np.inf], [0.0, 0.0, -np.inf]]
    policy = tl.SoftmaxPolicy.from_logits(mdp, [(0,)], [logits], temperature=0.5)
    ((union, values),) = entropy_terms(PolicyTables.read(policy))
    assert union.tolist() == [[0]]
    expected = torch.tensor([[0.0, 0.5 * np.log(2.0)]], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-16)
