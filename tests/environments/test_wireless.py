from __future__ import annotations

import itertools

import numpy as np
import oracle
import pytest
import torch

import torchloc as tl
from torchloc.environments import wireless, wireless_aloha
from torchloc.environments.wireless import points_of
from torchloc.errors import InputError
from torchloc.evaluation.simulator import Simulator
from torchloc.graphs import neighbourhood_scopes

# NumPy's RandomState(0), as published.
COINS = (0.5488, 0.7152, 0.6028, 0.5449, 0.4237, 0.6459)


def chosen(action: int, n_points: int) -> tuple[int, int] | None:
    """(slot, which of the user's points), or None for idle."""
    return None if action == 0 else divmod(action - 1, n_points)


def delivery(s, a, coins, reach, d: int, i: int) -> tuple[int, float]:
    """(slot, probability) of what user i delivers, from the text of the definition."""
    choice = chosen(a[i], len(reach[i]))
    if choice is None:
        return 0, 0.0
    point = reach[i][choice[1]]
    rivals = [
        k
        for k in range(len(reach))
        if k != i and (other := chosen(a[k], len(reach[k]))) and reach[k][other[1]] == point
    ]
    return choice[0], coins[point] * (not rivals) * s[d * i + choice[0]]


@pytest.mark.parametrize(
    ("height", "width", "users", "d"), [(2, 2, 1, 2), (2, 2, 1, 3), (2, 3, 1, 1), (2, 3, 1, 2)]
)
def test_law_and_reward(height: int, width: int, users: int, d: int) -> None:
    """Every kernel and the reward against the text, on random states and actions."""
    rng = np.random.default_rng(0)
    coins = rng.uniform(size=(height - 1) * (width - 1)).tolist()
    mdp = wireless(height, width, users=users, deadline=d, arrival=0.3, success=coins)
    reach = [points for points in points_of(height, width) for _ in range(users)]
    policy = tl.SoftmaxPolicy.tabular(mdp, neighbourhood_scopes(mdp, hops=d - 1))
    simulator = Simulator(mdp, policy)
    tables = mdp.tabulated()
    for _ in range(200):
        s, a = rng.integers(0, 2, size=mdp.n_coordinates), rng.integers(0, mdp.action_sizes)
        total = 0.0
        for i in range(mdp.n_agents):
            slot, probability = delivery(s, a, coins, reach, d, i)
            total += probability
            for bit in range(d):
                if bit == d - 1:
                    full = 0.3
                else:
                    full = s[d * i + bit + 1] * (1.0 - probability * (slot == bit + 1))
                assert law(tables, d * i + bit, s, a)[1] == pytest.approx(full, abs=1e-15)
        column = (torch.from_numpy(s)[:, None], torch.from_numpy(a)[:, None])
        assert float(simulator.reward(*column)) == pytest.approx(total, abs=1e-14)
        assert float(oracle_reward(tables, s, a)) == pytest.approx(total, abs=1e-14)


def law(mdp: tl.FactoredMDP, j: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    for batch in mdp.kernels:
        for row in np.flatnonzero(batch.coordinates == j):
            table = batch.table[row if len(batch.table) > 1 else 0]
            return table[(*s[batch.states[row]], *a[batch.actions[row]])]
    raise AssertionError(j)


def oracle_reward(mdp: tl.FactoredMDP, s: np.ndarray, a: np.ndarray) -> float:
    model = oracle.as_reference(mdp)
    return sum(table[(*s[list(p)], *a[list(q)])] for p, q, table in model.rewards)


def test_sizes_and_published_coins() -> None:
    mdp = wireless()
    assert (mdp.n_coordinates, mdp.n_agents) == (48, 24)
    reach = points_of(3, 4)
    assert sorted(map(len, reach)) == [1] * 4 + [2] * 6 + [4] * 2
    assert mdp.action_sizes.tolist() == [1 + 2 * len(p) for p in reach for _ in range(2)]
    largest = [float(table.max()) for batch in mdp.rewards for table in batch.table]
    assert {round(q, 4) for q in largest} <= set(COINS)
    with pytest.raises(InputError, match="success has 2 entries; give 6 probabilities"):
        wireless(success=[0.5, 0.5])


def test_sensitivities_by_hand() -> None:
    """A packet moves on: 1. The own action: up to the best coin. Another's: up to the best shared coin."""
    mdp = wireless()
    assert oracle_radius(mdp) == 0.0
    state = tl.state_sensitivity(mdp).toarray()
    expected = np.zeros((48, 48))
    expected[np.arange(0, 48, 2), np.arange(1, 48, 2)] = 1.0
    np.testing.assert_array_equal(state, expected)
    action = tl.action_sensitivity(mdp).toarray()
    coins = np.random.RandomState(0).random_sample(6)
    reach = [set(points) for points in points_of(3, 4) for _ in range(2)]
    for i, k in itertools.product(range(24), range(24)):
        shared = reach[i] if i == k else reach[i] & reach[k]
        best = max((coins[y] for y in shared), default=0.0)
        assert action[2 * i, k] == pytest.approx(best, abs=1e-14)
        assert action[2 * i + 1, k] == 0.0


def oracle_radius(mdp: tl.FactoredMDP) -> float:
    return tl.spectral_radius(tl.state_sensitivity(mdp)).upper


def returns(mdp: tl.FactoredMDP, policy: tl.SoftmaxPolicy, replicas: int) -> tuple[float, float]:
    """Mean over agents of Σ_{t < 10} .7^t r_i(t) from a fresh start, and its standard error."""
    simulator, generator = Simulator(mdp, policy), torch.Generator().manual_seed(0)
    states, total = simulator.start(replicas, generator), torch.zeros(replicas, dtype=torch.float64)
    for t in range(10):
        following, actions = simulator.step(states, generator)
        total += 0.7**t * simulator.reward(states, actions)
        states = following
    total /= mdp.n_agents
    return float(total.mean()), float(total.std()) / replicas**0.5


def test_published_returns() -> None:
    """Uniform .020, ALOHA .180 ± .002, and .470 if every point delivered at every step."""
    mdp = wireless()
    scopes = neighbourhood_scopes(mdp, hops=1)
    assert [tuple(scope) for scope in scopes] == [(2 * k, 2 * k + 1) for k in range(24)]
    mean, error = returns(mdp, tl.SoftmaxPolicy.tabular(mdp, scopes), 4000)
    assert abs(mean - 0.020) < 5e-4 + 4 * error
    aloha = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, wireless_aloha(), temperature=1.0)
    mean, error = returns(mdp, aloha, 4000)
    assert abs(mean - 0.180) < 2e-3 + 4 * error
    assert sum(COINS) / 24 * sum(0.7**t for t in range(10)) == pytest.approx(0.470, abs=5e-4)


def test_the_full_grid_is_certified_where_policies_do_not_look() -> None:
    """The uniform policy: ρ = 0 on every rung but scope; ALOHA is not certified."""
    mdp = wireless()
    scopes = neighbourhood_scopes(mdp, hops=1)
    uniform = tl.certify(mdp, tl.SoftmaxPolicy.tabular(mdp, scopes))
    assert all(uniform[rung].rho.upper == 0.0 for rung in uniform if rung != "scope")
    aloha = tl.SoftmaxPolicy.from_probabilities(mdp, scopes, wireless_aloha(), temperature=1.0)
    assert tl.certify(mdp, aloha, rungs=["exact"])["exact"].rho.lower > 1.0


def test_training_at_one_access_point_beats_aloha() -> None:
    """Four users: joint and local engines on counts; the rewards fit tables here."""
    mdp = wireless(2, 2, users=1)
    scopes = neighbourhood_scopes(mdp, hops=1)
    aloha = tl.SoftmaxPolicy.from_probabilities(
        mdp, scopes, wireless_aloha(2, 2, users=1), temperature=1.0
    )
    policy = tl.SoftmaxPolicy.tabular(mdp, scopes)
    for kappa in (0, 1):
        local = tl.local_logits(mdp, policy, kappa)
        written = tl.local_logits(mdp.tabulated(), policy, kappa)
        for k in range(4):
            np.testing.assert_allclose(local[k].numpy(), written[k].numpy(), atol=1e-12)
    state = tl.Trainer(
        mdp, policy, schedule=lambda progress: 0.3 * 0.02**progress, iterations=12,
        evaluation=tl.Evaluation(kappa=1),
    ).run()  # fmt: skip
    assert state.iteration == 12
    reached = float(tl.JointEvaluation(mdp, policy).average_reward)
    assert reached > float(tl.JointEvaluation(mdp, aloha).average_reward) + 0.05
