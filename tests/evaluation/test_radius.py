"""The largest κ that fits: it fits, one more does not, and what fits runs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import reference as ref
from evaluation.averages import Definition
from torch import Tensor
from twins import draw, twin_model

import torchloc as tl
from torchloc.contraction import Network
from torchloc.contraction.balls import Ball
from torchloc.contraction.sites import Sites
from torchloc.environments import sysadmin
from torchloc.evaluation import radius as room
from torchloc.evaluation.local import LocalEvaluation, local_logits
from torchloc.evaluation.radius import (
    largest_kappa,
    largest_kappas,
    largest_that_fits,
    plan_balls,
)
from torchloc.evaluation.sources import Sources
from torchloc.policy import SoftmaxPolicy

Array = np.ndarray
BUDGETS = (2**8, 2**10, 2**12, 2**14)


def line_and_star(leaves: int = 3) -> tuple[ref.Model, SoftmaxPolicy]:
    """A line of six sites beside a hub that reads its leaves: neither sees the other.

    Agents 0 to 5 act on the line, 6 on the hub, the others on its leaves.
    """
    rng = np.random.default_rng(0)
    parents = [[i for i in (j - 1, j, j + 1) if 0 <= i < 6] for j in range(6)]
    parents.append([6, *range(7, 7 + leaves)])
    parents += [[6, j] for j in range(7, 7 + leaves)]
    n = len(parents)
    kernels = [
        (tuple(near), (j,), rng.dirichlet(np.ones(2), (2,) * (len(near) + 1)))
        for j, near in enumerate(parents)
    ]
    model = ref.Model(
        (2,) * n, (2,) * n, kernels, [((j,), (), rng.normal(size=2)) for j in range(n)]
    )
    mdp = twin_model(model)
    return model, SoftmaxPolicy.tabular(mdp, [(k,) for k in range(n)], scale=1.0, seed=2)


def bytes_of(ball: Ball) -> int:
    peaks = [step.pulling().peak for step in ball.steps]
    return 8 * max([ball.last.averaging().peak, *peaks])


def fits(local: LocalEvaluation, budget: int) -> bool:
    return max(map(bytes_of, local.balls), default=0) <= budget


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_fits_and_one_more_does_not(seed: int, objective: Any) -> None:
    _, _, mdp, policy = draw(seed, n_coordinates=(3, 6), n_agents=(2, 4), max_joint=1500)
    for budget in BUDGETS:
        options = {"objective": objective, "ball_bytes": budget}
        try:
            kappa = largest_kappa(mdp, policy, at_most=4, **options)
        except tl.BudgetError:
            kappa = -1
        if kappa >= 0:
            assert fits(LocalEvaluation(mdp, policy, kappa, **options), budget)
        if kappa < 4:
            with pytest.raises(tl.BudgetError) as caught:
                LocalEvaluation(mdp, policy, kappa + 1, **options)
            mend = f"kappa={kappa} fits" if kappa >= 0 else "no kappa fits"
            assert mend in str(caught.value)


def test_the_message_names_agent_kappa_bytes_and_what_fits() -> None:
    model, policy = line_and_star()
    mdp = twin_model(model)
    for kappa, budget, fitting in ((4, 2**8, 2), (4, 2**9, 3), (0, 2**7, None)):
        with pytest.raises(tl.BudgetError) as caught:
            LocalEvaluation(mdp, policy, kappa, ball_bytes=budget)
        found = re.fullmatch(
            r"at kappa=(\d+) the ball of agent (\d+) needs a tensor of (\d+) bytes, over the "
            r"budget of (\d+); (?:kappa=(\d+) fits|no kappa fits: use smaller scopes), or "
            r"raise the budget",
            str(caught.value),
        )
        assert found is not None, str(caught.value)
        at, agent, needed, limit, largest = found.groups()
        assert (int(at), int(limit)) == (kappa, budget)
        assert int(agent) in (range(6) if fitting is not None else range(6, 10))
        assert budget < int(needed) and int(needed) % 8 == 0
        with pytest.raises(tl.BudgetError):
            LocalEvaluation(mdp, policy, kappa, ball_bytes=int(needed) - 1)
        if fitting is None:
            assert largest is None
            continue
        assert int(largest) == fitting
        LocalEvaluation(mdp, policy, fitting, ball_bytes=budget)
        with pytest.raises(tl.BudgetError):
            LocalEvaluation(mdp, policy, fitting + 1, ball_bytes=budget)
        assert largest_kappa(mdp, policy, ball_bytes=budget, at_most=8) == fitting


def test_no_kappa_fits() -> None:
    mdp = sysadmin(n=6)
    policy = SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    with pytest.raises(tl.BudgetError, match=r"at kappa=2 .* no kappa fits: use smaller"):
        LocalEvaluation(mdp, policy, 2, ball_bytes=8)
    for search in (largest_kappa, largest_kappas):
        with pytest.raises(tl.BudgetError, match="at kappa=0 the ball of agent"):
            search(mdp, policy, ball_bytes=8)
    layout = (Sites(mdp, policy), Sources.of(mdp, policy, entropies=False), policy)
    assert largest_that_fits(*layout, 3, 8) == -1
    assert plan_balls(*layout, 0, 2**20)


# One κ an agent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["reward", "entropy"])
@pytest.mark.parametrize("seed", range(3, 5))
def test_per_agent_radii(seed: int, objective: Any) -> None:
    """Between the smallest over all agents and that of the agents' own balls."""
    _, _, mdp, policy = draw(seed, n_coordinates=(4, 6), n_agents=(2, 4), max_joint=1500)
    before = np.full(mdp.n_agents, -1)
    for budget in BUDGETS:
        options = {"objective": objective, "ball_bytes": budget, "at_most": 4}
        try:
            kappas = largest_kappas(mdp, policy, **options)
        except tl.BudgetError:
            continue
        assert kappas.shape == (mdp.n_agents,) and kappas.dtype.kind == "i"
        assert kappas.min() == largest_kappa(mdp, policy, **options)
        assert kappas.max() <= 4
        assert (kappas >= before).all()
        before = kappas
        capped = largest_kappas(mdp, policy, **{**options, "at_most": 2})
        assert capped.tolist() == np.minimum(kappas, 2).tolist()


def caterpillar() -> tuple[tl.FactoredMDP, SoftmaxPolicy]:
    """A line of ten one way, j - 1 -> j, whose site 4 also reads three sites of its own."""
    rng = np.random.default_rng(0)
    parents = [[i for i in (j - 1, j) if i >= 0] for j in range(10)] + [[j] for j in range(10, 13)]
    parents[4] += [10, 11, 12]
    kernels = [
        tl.LocalKernel(near, (j,), rng.dirichlet(np.ones(2), (2,) * (len(near) + 1)))
        for j, near in enumerate(parents)
    ]
    rewards = [tl.LocalReward((j,), (), [0.0, 1.0]) for j in range(13)]
    mdp = tl.FactoredMDP([2] * 13, [2] * 13, kernels, rewards)
    return mdp, SoftmaxPolicy.tabular(mdp, [(k,) for k in range(13)], scale=1.0)


@pytest.mark.parametrize("budget", [2**9, 2**10, 2**11])
def test_every_ball_that_an_agent_reaches_fits_at_its_radius(budget: int) -> None:
    mdp, policy = caterpillar()
    kappas = largest_kappas(mdp, policy, ball_bytes=budget, at_most=6)
    assert kappas.min() < kappas.max()
    for k, kappa in enumerate(kappas):
        local = LocalEvaluation(mdp, policy, int(kappa))
        assert max(bytes_of(reached.ball) for reached in local.select([k]).balls) <= budget


def test_agents_apart_have_radii_of_their_own() -> None:
    model, policy = line_and_star()
    mdp = twin_model(model)
    n = mdp.n_agents
    kappas = largest_kappas(mdp, policy, ball_bytes=2**9, at_most=6)
    assert kappas.tolist() == [3] * 6 + [6] * 4
    for agents, kappa in ((range(6), 3), (range(6, n), 6)):
        for at in (kappa, kappa + 1):
            balls = LocalEvaluation(mdp, policy, at).balls
            acted = [ball for ball in balls if set(ball.rows.tolist()) <= set(agents)]
            assert sum(map(len, acted)) == len(agents)
            assert (max(map(bytes_of, acted)) <= 2**9) == (at <= kappa or kappa == 6)


def test_the_engine_works_at_the_radii_that_fit() -> None:
    """Balls that the agents of a κ do not reach may be too large at it."""
    model, policy = line_and_star()
    mdp = twin_model(model)
    budget = 2**9
    kappas = largest_kappas(mdp, policy, ball_bytes=budget, at_most=4)
    assert kappas.min() < kappas.max()
    found = local_logits(mdp, policy, kappas, ball_bytes=budget, objective="reward")
    for k, kappa in enumerate(kappas):
        expected = local_logits(mdp, policy, int(kappa))[k]
        assert float((found[k] - expected).abs().max()) <= 1e-13


def test_small_models_fit_at_every_kappa() -> None:
    model, plain, mdp, policy = draw(1, n_coordinates=(2, 2))
    assert largest_kappas(mdp, policy, at_most=7).tolist() == [7] * mdp.n_agents
    found = local_logits(mdp, policy, "auto", discount=0.5)
    expected = Definition(model, plain).averages((room.LARGEST_KAPPA, "reward", 0.5))
    for k in range(mdp.n_agents):
        assert np.abs(found[k].numpy() - expected[k]).max() <= 1e-12


def test_tables_that_no_ball_reads_keep_to_the_budget_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four agents that see four coordinates each move one that earns nothing: 2¹⁷ entries."""
    rng = np.random.default_rng(0)
    move = tl.LocalKernel((), tuple(range(4)), rng.dirichlet(np.ones(2), (2,) * 4))
    hold = [tl.LocalKernel((j,), (), [[0.9, 0.1], [0.1, 0.9]]) for j in range(1, 17)]
    reward = tl.LocalReward((1,), (0,), rng.normal(size=(2, 2)))
    mdp = tl.FactoredMDP([2] * 17, [2] * 4, [move, *hold], [reward])
    scopes = [tuple(range(1 + 4 * k, 5 + 4 * k)) for k in range(4)]
    policy = SoftmaxPolicy.tabular(mdp, scopes, scale=1.0)
    sizes = []
    plain = Network.__call__

    def spied(self: Network, operands: Any) -> Tensor:
        sizes.append(8 * self.peak)
        return plain(self, operands)

    monkeypatch.setattr(Network, "__call__", spied)
    found = local_logits(mdp, policy, 1, ball_bytes=2**18)
    assert max(sizes) <= 2**18
    own = found[0].mean(dim=(1, 2, 3)).numpy()
    table = reward.table - reward.table.mean(axis=1, keepdims=True)
    assert np.abs(own - table).max() <= 1e-15
    assert all(not found[k].any() for k in range(1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_most": -1}, "-1; it must be a whole number"),
        ({"at_most": 1.5}, "1.5; it must be a whole number"),
        ({"objective": "value"}, "objective is 'value'"),
        ({"ball_bytes": 0}, "ball_bytes is 0; it must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    mdp = sysadmin(n=4)
    policy = SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp))
    with pytest.raises(tl.InputError, match=message):
        largest_kappas(mdp, policy, **options)
