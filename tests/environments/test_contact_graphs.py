"""Real contact graphs, whose hubs have up to 36 neighbours: certified, and trained at κ = 1."""

from __future__ import annotations

import numpy as np
import pytest

import torchloc as tl
from torchloc.environments import sis, sysadmin_on
from torchloc.schedules import geometric


def own_scopes(mdp: tl.FactoredMDP) -> tl.SoftmaxPolicy:
    return tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp, hops=0))


def trained(mdp: tl.FactoredMDP, order: str, iterations: int) -> tuple[float, float, float]:
    """Reward per agent of the uniform policy and after training, and the half-width of the latter."""
    policy = own_scopes(mdp)
    options = {"steps": 200, "burn_in": 100, "replicas": 8}
    before = tl.simulate(mdp, policy, seed=1, **options).average_reward
    state = tl.Trainer(
        mdp, policy, schedule=lambda progress: geometric(progress, start=0.5, end=0.05),
        improvement=tl.Improvement(order=order, weighting="uniform"), iterations=iterations,
        evaluation=tl.Evaluation(engine="local", kappa=1),
    ).run()  # fmt: skip
    assert state.iteration == iterations
    after = tl.simulate(mdp, policy, seed=1, **options)
    return before / mdp.n_agents, after.average_reward / mdp.n_agents, after.half_width


@pytest.mark.slow
def test_karate_trains_at_radius_one() -> None:
    before, after, _ = trained(sis(graph="karate"), "chromatic", 3)
    assert after > before + 0.05


@pytest.mark.slow
def test_les_miserables_trains_at_radius_one() -> None:
    """77 people, up to 36 contacts; one simultaneous sweep."""
    before, after, _ = trained(sis(graph="les_miserables"), "jacobi", 1)
    assert after > before + 0.01


def test_advantages_on_karate_are_those_of_its_tables() -> None:
    """At κ = 0 the tables can still be contracted; sums over 2^18 rows round that often."""
    mdp = sis(graph="karate")
    policy = own_scopes(mdp)
    found, wanted = (tl.local_logits(m, policy, 0) for m in (mdp, mdp.tabulated()))
    for k in range(34):
        atol = 2**18 * np.finfo(float).eps
        np.testing.assert_allclose(found[k].numpy(), wanted[k].numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize(("graph", "largest"), [("karate", 17), ("les_miserables", 36)])
def test_contact_graphs_are_certified(graph: str, largest: int) -> None:
    """A mild infection: coupled certifies the policy that treats the ill, E^s + E^a Π does not."""
    mdp = sis(graph=graph, infection=(0.03, 0.01), recovery=(0.4, 0.8))
    assert max(batch.state_parents.shape[1] - 1 for batch in mdp.kernels) == largest
    treat = [np.array([[1.0, 0.0], [0.0, 1.0]])] * mdp.n_agents
    policy = tl.SoftmaxPolicy.from_probabilities(
        mdp, [(k,) for k in range(mdp.n_agents)], treat, temperature=1.0
    )
    certificate = tl.certify(mdp, policy, rungs=["coupled", "exact"])
    assert certificate["coupled"].rho.upper < 1.0 < certificate["exact"].rho.lower


def test_sysadmin_on_karate_counts_through_adders() -> None:
    import networkx as nx

    mdp = sysadmin_on(nx.karate_club_graph())
    policy = own_scopes(mdp)
    found, wanted = (tl.local_logits(m, policy, 0) for m in (mdp, mdp.tabulated()))
    for k in range(34):
        np.testing.assert_allclose(found[k].numpy(), wanted[k].numpy(), rtol=0, atol=1e-12)
    assert tl.LocalEvaluation(mdp, policy, 1).balls
