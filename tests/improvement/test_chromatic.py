"""Blocks of one colour together: the iterates of one agent after another, in colour order."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from twins import draw

import torchloc as tl
from torchloc.colouring import colour_classes, conflict_graph, first_fit
from torchloc.environments import ising, random_mdp, sysadmin
from torchloc.evaluation.joint import Objective
from torchloc.improvement import Improvement, chromatic_sweep, coloured_sweep

# Sums of some thousand products of numbers of size 10, in another order.
ATOL = 1e-12


def colours_of(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, kappa: int, objective: Objective):
    return colour_classes(first_fit(conflict_graph(mdp, policy.scopes, kappa, objective=objective)))


def states_of(mdp: tl.FactoredMDP, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.integers(0, size, 5) for size in mdp.state_sizes], axis=1))


def compare(
    mdp: tl.FactoredMDP,
    policy: tl.SoftmaxPolicy,
    kappa: int,
    settings: Improvement,
    discount: float = 1.0,
    **weighting: object,
) -> int:
    """Sweeps by colours against sweeps by agents, two of small models; returns the number of colours."""
    local = tl.LocalEvaluation(mdp, policy, kappa, objective=settings.objective, discount=discount)
    colours = colours_of(mdp, policy, kappa, settings.objective)
    together, alone = copy.deepcopy(policy), copy.deepcopy(policy)
    for _ in range(1 + (policy.n_agents < 8)):
        chromatic_sweep(local, [local.select(c) for c in colours], together, settings, **weighting)
        for colour in colours:
            for k in colour:
                chromatic_sweep(local, [local.select([k])], alone, settings, **weighting)
    for k in range(policy.n_agents):
        torch.testing.assert_close(together.logits(k), alone.logits(k), rtol=ATOL, atol=ATOL)
    assert any(
        not torch.equal(together.logits(k), policy.logits(k)) for k in range(policy.n_agents)
    )
    return len(colours)


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(6))
def test_random_models(seed: int, objective: Objective) -> None:
    _, _, mdp, policy = draw(seed)
    settings = Improvement(objective=objective, prox=0.5)
    for kappa in (0, 2):
        compare(mdp, policy, kappa, settings, 0.9)
        compare(mdp, policy, kappa, settings, states=states_of(mdp, seed))


@pytest.mark.parametrize(
    ("mdp", "kappa", "most"),
    [
        (sysadmin(n=8), 2, 4),
        (sysadmin(n=16), 2, 4),
        (random_mdp(n=12, seed=1), 1, 3),
        (ising(n=9, lattice="torus"), 0, 9),
    ],
)
def test_rings_and_a_torus(mdp: tl.FactoredMDP, kappa: int, most: int) -> None:
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0, seed=2)
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.full(2, 5.0), mdp.n_coordinates)
    assert compare(mdp, policy, kappa, Improvement(), weighting=law) <= most


def test_the_joint_engine_takes_the_same_steps() -> None:
    """Uniform weighting, the advantages of one engine against those of the other."""
    mdp = sysadmin(n=6)
    policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=1.0)
    settings = Improvement(order="chromatic", weighting="uniform")
    colours = colours_of(mdp, policy, 1, "entropy")
    by_balls, by_states = copy.deepcopy(policy), copy.deepcopy(policy)
    local = tl.LocalEvaluation(mdp, policy, 1, objective="entropy")
    chromatic_sweep(local, [local.select(c) for c in colours], by_balls, settings)
    joint = tl.JointEvaluation(mdp, by_states, objective="entropy")
    coloured_sweep(joint, by_states, settings, 1, colours)
    for k in range(6):
        torch.testing.assert_close(by_balls.logits(k), by_states.logits(k), rtol=0, atol=1e-11)


def test_networks_move_by_colours_too() -> None:
    mdp = sysadmin(n=12)
    policy = tl.SoftmaxPolicy.mlp(mdp, tl.neighbourhood_scopes(mdp), hidden=(8,), seed=3)
    settings = Improvement(weighting="uniform", fit_steps=200)
    local = tl.LocalEvaluation(mdp, policy, 1, objective="entropy")
    colours = [local.select(c) for c in colours_of(mdp, policy, 1, "entropy")]
    table = tl.SoftmaxPolicy.from_logits(mdp, policy.scopes, [policy.logits(k) for k in range(12)])
    chromatic_sweep(local, colours, policy, settings)
    chromatic_sweep(local, colours, table, settings)
    for k in range(12):
        torch.testing.assert_close(
            policy.probabilities(k), table.probabilities(k), rtol=0, atol=1e-6
        )
