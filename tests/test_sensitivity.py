"""Every rung against brute force on random models, and the theorems that order and use them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference as ref
import torch
from twins import draw, twin_model, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.sensitivity import RUNGS, action_sup, couple, coupled_influence

# A TV of computed probabilities carries one rounding a term and that of e^x, on logits up to ~100.
ATOL = 1e-12
SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_matches_definitions(seed: int) -> None:
    model, policy, mdp, twin = draw(seed, policy={"minus_infinity": 0.2 * (seed % 2)})
    np.testing.assert_allclose(
        tl.state_sensitivity(mdp).toarray(), ref.state_sensitivity(model), atol=ATOL
    )
    np.testing.assert_allclose(
        tl.action_sensitivity(mdp).toarray(), ref.action_sensitivity(model), atol=ATOL
    )
    for rung in RUNGS[1:]:
        np.testing.assert_allclose(
            tl.policy_sensitivity(twin, rung).toarray(),
            ref.policy_sensitivity(model, policy, rung),
            atol=ATOL,
            err_msg=rung,
        )
    for rung in RUNGS:
        np.testing.assert_allclose(
            tl.influence(mdp, twin, rung).toarray(),
            ref.influence(model, policy, rung),
            atol=ATOL,
            err_msg=rung,
        )


@pytest.mark.parametrize("seed", range(100, 140))
def test_coupled_matches_definition_with_many_shared_actions(seed: int) -> None:
    model, policy, mdp, twin = draw(
        seed,
        n_coordinates=(2, 3),
        n_agents=(2, 3),
        sizes=(2, 3),
        policy={"full_scopes": seed % 3 == 0},
    )
    np.testing.assert_allclose(
        tl.influence(mdp, twin, "coupled").toarray(),
        ref.coupled_influence(model, policy),
        atol=ATOL,
    )
    averaged = coupled_influence(mdp, PolicyTables.read(twin), all_private=True)
    np.testing.assert_allclose(averaged.toarray(), ref.marginal_influence(model, policy), atol=ATOL)


@pytest.mark.parametrize("seed", range(200, 240))
def test_ladder_is_ordered_and_sound(seed: int) -> None:
    model, policy, mdp, twin = draw(seed, unichain=True)
    ladder = [tl.influence(mdp, twin, rung).toarray() for rung in RUNGS]
    for sharp, blunt in itertools.pairwise(ladder):
        assert (sharp <= blunt + 1e-15).all()
    step = ref.chain(model, policy).matrix
    values = np.random.default_rng(seed).normal(size=(20, len(step)))
    for f in values:
        moved, was = ref.oscillation(model, step @ f), ref.oscillation(model, f)
        assert (moved <= ladder[0].T @ was + ATOL).all()


@pytest.mark.parametrize("seed", range(30))
def test_action_sup_matches_definition(seed: int) -> None:
    model, _, mdp, _ = draw(seed, square=True)
    np.testing.assert_allclose(action_sup(mdp).toarray(), ref.action_sup(model), atol=ATOL)


def test_action_sup_needs_one_agent_a_coordinate() -> None:
    _, _, mdp, _ = draw(0, n_coordinates=(3, 3), n_agents=(2, 2))
    with pytest.raises(tl.InputError, match="3 coordinates and 2 agents"):
        action_sup(mdp)


def test_marginal_influence_is_no_certificate_with_a_shared_action() -> None:
    """Theory, section 3: s'_1 = a_1, s'_2 = a_1 xor a_2, π_1 uniform, a_2 = s_1."""
    xor = np.zeros((2, 2, 2))
    for a in range(2):
        for b in range(2):
            xor[a, b, a ^ b] = 1.0
    model = ref.Model((2, 2), (2, 2), [((), (0,), np.eye(2)), ((), (0, 1), xor)], [])
    logits = [np.zeros(2), np.where(np.eye(2) > 0, 0.0, -np.inf)]
    policy = ref.Policy([(), (0,)], logits, np.ones(2))
    mdp = twin_model(model)
    twin = twin_policy(mdp, policy)
    assert coupled_influence(mdp, PolicyTables.read(twin), all_private=True).nnz == 0
    f = (model.states[:, 0] == model.states[:, 1]).astype(float)
    assert ref.oscillation(model, ref.chain(model, policy).matrix @ f)[0] == 1.0
    assert tl.influence(mdp, twin, "coupled")[1, 0] == 1.0


def test_coupling_has_its_marginals_and_is_maximal() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 50, 4, generator=generator, dtype=torch.float64).softmax(-1)
    joint = couple(p, q)
    torch.testing.assert_close(joint.sum(-1), p)
    torch.testing.assert_close(joint.sum(-2), q)
    apart = 1.0 - joint.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(apart, 0.5 * (p - q).abs().sum(-1))
    assert torch.equal(couple(p, p), torch.diag_embed(p))


def test_rung_names_are_checked() -> None:
    _, _, mdp, twin = draw(1)
    with pytest.raises(tl.InputError, match="'sharp'; choose one of coupled"):
        tl.influence(mdp, twin, "sharp")
    with pytest.raises(tl.InputError, match="exact, span"):
        tl.policy_sensitivity(twin, "coupled")
