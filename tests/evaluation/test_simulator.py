"""One step of the simulator: its law by enumeration, its inversion by hand, rewards to rounding.

Statistical tests reject at 1e-6 on fixed seeds, some 60 in all: a right simulator fails one of them
for one choice of seeds in 15,000.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import torch
from scipy.stats import chi2
from twins import draw, twin_policy

import torchloc as tl
from torchloc.closed_loop import PolicyTables
from torchloc.environments import sysadmin
from torchloc.evaluation import simulator as room
from torchloc.evaluation.simulator import Simulator

LEVEL = 1e-6
REPLICAS = 20_000
LAST = 1.0 - 2.0**-53
"""The largest number that a float64 uniform draws."""


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of Pearson's χ², cells below five expected counts taken together."""
    expected = law * counts.sum()
    small = expected < 5.0
    found = np.append(counts[~small], counts[small].sum())
    wanted = np.append(expected[~small], expected[small].sum())
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    statistic = float(((found - wanted) ** 2 / wanted).sum())
    return float(chi2.sf(statistic, max(1, len(wanted) - 1)))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flat(values: torch.Tensor, sizes: tuple[int, ...]) -> np.ndarray:
    """Joint numbers of the columns of (n, R)."""
    if not sizes:
        return np.zeros(values.shape[1], np.int64)
    return np.ravel_multi_index(tuple(values.numpy().astype(np.int64)), sizes)


def random_case(seed: int) -> tuple[ref.Model, ref.Policy, tl.FactoredMDP, tl.SoftmaxPolicy]:
    return draw(
        seed,
        sizes=(1, 5),
        n_agents=(1, 4),
        structure=("general", "periodic", "nilpotent")[seed % 3],
        policy={"minus_infinity": 0.2 * (seed % 2)},
    )


@pytest.mark.parametrize("seed", range(30))
def test_actions_and_next_states_follow_their_joint_law(seed: int) -> None:
    model, policy, mdp, twin = random_case(seed)
    at = np.random.default_rng(seed).integers(len(model.states))
    start = torch.tensor(model.states[at])[:, None].expand(-1, REPLICAS)
    following, actions = Simulator(mdp, twin).step(start, generator(seed))
    pairs = flat(actions, model.action_sizes) * len(model.states)
    pairs += flat(following, model.state_sizes)
    law = ref.product_policy(model, policy)[at][:, None] * ref.transition(model)[at]
    counts = np.bincount(pairs, minlength=law.size)
    assert counts[law.ravel() == 0.0].sum() == 0
    assert p_value(counts, law.ravel()) > LEVEL


@pytest.mark.parametrize("seed", range(20))
def test_rewards_and_entropies_are_those_of_the_definitions(seed: int) -> None:
    model, policy, mdp, twin = random_case(seed)
    simulator = Simulator(mdp, twin)
    s, a = np.divmod(np.arange(len(model.states) * len(model.actions)), len(model.actions))
    states, actions = torch.tensor(model.states[s].T), torch.tensor(model.actions[a].T)
    found = simulator.reward(states, actions).numpy()
    # Sums of at most four normal terms and four entropies: a few units in the last place.
    np.testing.assert_allclose(found, ref.reward(model)[s, a], rtol=0, atol=1e-13)
    bonus = ref.policy_reward(model, policy, policy.temperature) - ref.policy_reward(model, policy)
    np.testing.assert_allclose(simulator.entropy(states).numpy(), bonus[s], rtol=0, atol=1e-12)
    largest = np.abs(ref.reward(model)).max()
    assert simulator.bound("reward") >= largest - 1e-13
    assert simulator.bound("entropy") >= np.abs(ref.reward(model)[s, a] + bonus[s]).max() - 1e-12


@pytest.mark.parametrize(("low", "high", "bound"), [(-3.0, 1.0, 11.0), (-1.0, 3.0, 13.0)])
def test_the_bound_counts_every_site_of_a_shared_table(
    low: float, high: float, bound: float
) -> None:
    kernels = [tl.LocalKernel((), (), [0.5, 0.5])] * 4
    shared = tl.RewardBatch(np.arange(4)[:, None], np.zeros((4, 0), np.int64), [[low, high]])
    constant = tl.LocalReward((), (), np.float64(1.0))
    mdp = tl.FactoredMDP([2] * 4, [], kernels, [shared, constant])
    assert Simulator(mdp, tl.SoftmaxPolicy.tabular(mdp, [])).bound("reward") == bound


@pytest.mark.parametrize("size", [*range(1, 10), 300])
def test_bisection_inverts_the_distribution_function(size: int) -> None:
    rng = np.random.default_rng(size)
    laws = rng.dirichlet(np.full(size, 0.3), 4) * (rng.random((4, size)) < 0.7)
    laws[:, -1] += laws.sum(axis=1) == 0.0
    laws /= laws.sum(axis=1, keepdims=True)
    kernels = [tl.LocalKernel((), (), law) for law in laws]
    mdp = tl.FactoredMDP([size] * 4, [], kernels, [])
    simulator = Simulator(mdp, tl.SoftmaxPolicy.tabular(mdp, []))
    found, _ = simulator.step(simulator.start(500, generator(1)), generator(2))
    uniform = torch.rand(4, 500, generator=generator(2), dtype=torch.float64).numpy()
    for j, law in enumerate(laws):
        steps = np.add.accumulate(law)
        wanted = np.searchsorted(steps[:-1] / steps[-1], uniform[j], side="right")
        np.testing.assert_array_equal(found[j].numpy(), wanted)
        assert (law[found[j].numpy().astype(np.int64)] > 0).all()


@pytest.mark.parametrize(("uniform", "drawn"), [(0.0, 1), (LAST, 10)])
def test_values_of_probability_zero_are_never_drawn_at_either_end(
    uniform: float, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    law = np.array([0.0, *[0.1] * 10, 0.0, 0.0])
    assert np.add.accumulate(law)[-1] == LAST  # what is drawn must not reach the sum
    mdp = tl.FactoredMDP(
        [13, 2, 2],
        [13],
        [
            tl.LocalKernel((), (), law),
            tl.LocalKernel((), (), [1.0, 0.0]),
            tl.LocalKernel((), (), [0.0, 1.0]),
        ],
        [],
        initial=[law, [1.0, 0.0], [0.0, 1.0]],
    )
    policy = tl.SoftmaxPolicy.from_probabilities(mdp, [()], [law])
    simulator = Simulator(mdp, policy)

    def constant(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
        return torch.full(shape, uniform, dtype=torch.float64)

    monkeypatch.setattr(torch, "rand", constant)
    states = simulator.start(2, None)
    following, actions = simulator.step(states, None)
    for found in (states, following):
        assert found.tolist() == [[drawn] * 2, [0] * 2, [1] * 2]
    assert actions.tolist() == [[drawn] * 2]


@pytest.mark.parametrize(
    "sizes", [(), (2, 3, 5), (1, 128), (16, 8), (129,), (300,), (128, 128), (200, 200)]
)
def test_deterministic_laws_read_the_right_row(sizes: tuple[int, ...]) -> None:
    """Up to, at and beyond 2⁸, 2¹⁵ and 2¹⁶ rows, parents in another order, and an action."""
    rng = np.random.default_rng(len(sizes))
    parents = tuple((1 + rng.permutation(len(sizes))).tolist())
    table = rng.integers(2, size=(*(sizes[i - 1] for i in parents), 2))
    kernels = [tl.LocalKernel(parents, (0,), np.eye(2)[table])]
    kernels += [tl.LocalKernel((), (), np.full(size, 1.0 / size)) for size in sizes]
    mdp = tl.FactoredMDP([2, *sizes], [2], kernels, [])
    simulator = Simulator(mdp, tl.SoftmaxPolicy.tabular(mdp, [()]))
    states = simulator.start(2000, generator(3))
    following, actions = simulator.step(states, generator(4))
    before, acted = states.numpy().astype(np.int64), actions[0].numpy().astype(np.int64)
    wanted = table[(*(before[i] for i in parents), acted)]
    np.testing.assert_array_equal(following[0].numpy(), wanted)


def test_batches_with_a_table_at_every_site_read_their_own() -> None:
    """A ring from one batch, and the same ring from two interleaved ones, against a loop."""
    n, replicas = 12, 50
    rng = np.random.default_rng(5)
    sites = np.arange(n)
    parents = np.stack([(sites - 1) % n, sites, (sites + 1) % n], axis=1)
    up = rng.random((n, 2, 2, 2, 2))
    laws = np.stack([1.0 - up, up], axis=-1)

    def model(*parts: np.ndarray) -> tl.FactoredMDP:
        kernels = [tl.KernelBatch(p, parents[p], p[:, None], laws[p]) for p in parts]
        return tl.FactoredMDP([2] * n, [2] * n, kernels, [])

    for parts in ((sites,), (sites[1::2], sites[::2])):
        mdp = model(*parts)
        policy = tl.SoftmaxPolicy.tabular(mdp, tl.neighbourhood_scopes(mdp), scale=2.0, seed=6)
        simulator = Simulator(mdp, policy)
        states = simulator.start(replicas, generator(7))
        following, actions = simulator.step(states, generator(8))
        again = generator(8)
        uniform = torch.rand(n, replicas, generator=again, dtype=torch.float64)
        for k in range(n):
            seen = states[list(policy.scopes[k])].long()
            acting = policy.probabilities(k)[tuple(seen)]
            assert torch.equal(actions[k], (uniform[k] >= acting[:, 0]).to(torch.uint8))
        for part in parts:
            uniform = torch.rand(len(part), replicas, generator=again, dtype=torch.float64)
            for row, j in enumerate(part.tolist()):
                read = (*states[parents[j]].long(), actions[j].long())
                stays = torch.tensor(laws[j])[read][:, 0]
                assert torch.equal(following[j], (uniform[row] >= stays).to(torch.uint8))


@pytest.mark.parametrize("given", [False, True])
def test_first_states_follow_the_initial_law(given: bool) -> None:
    rng = np.random.default_rng(9)
    sizes = (1, 2, 3, 7)
    laws = [rng.dirichlet(np.ones(s)) if given else np.full(s, 1.0 / s) for s in sizes]
    kernels = [tl.LocalKernel((), (), np.full(s, 1.0 / s)) for s in sizes]
    mdp = tl.FactoredMDP(sizes, [], kernels, [], initial=laws if given else None)
    states = Simulator(mdp, tl.SoftmaxPolicy.tabular(mdp, [])).start(REPLICAS, generator(10))
    joint = np.array([1.0])
    for law in laws:
        joint = np.outer(joint, law).ravel()
    assert p_value(np.bincount(flat(states, sizes), minlength=len(joint)), joint) > LEVEL


@pytest.mark.parametrize("seed", range(6))
def test_renewed_equals_a_new_simulator(seed: int) -> None:
    model, policy, mdp, twin = random_case(seed)
    other = twin_policy(
        mdp, ref.random_policy(np.random.default_rng(99), model, scopes=policy.scopes)
    )
    old = Simulator(mdp, twin)
    states = old.start(200, generator(seed))
    before = old.step(states, generator(1)), old.entropy(states)
    for law in (other, PolicyTables.read(other)):
        new, fresh = old.renewed(law), Simulator(mdp, law)
        for mine, wanted in zip(
            new.step(states, generator(1)), fresh.step(states, generator(1)), strict=True
        ):
            assert torch.equal(mine, wanted)
        assert torch.equal(new.entropy(states), fresh.entropy(states))
    # The old one is as it was.
    assert torch.equal(old.step(states, generator(1))[1], before[0][1])
    assert torch.equal(old.entropy(states), before[1])


def test_later_changes_of_the_policy_do_not_reach_it() -> None:
    _, _, mdp, twin = random_case(3)
    simulator = Simulator(mdp, twin)
    states = simulator.start(200, generator(0))
    actions = simulator.step(states, generator(1))[1]
    for parameter in twin.parameters():
        parameter.data.mul_(-3.0)
    twin.set_temperature(0.01)
    assert torch.equal(simulator.step(states, generator(1))[1], actions)


@pytest.mark.slow
def test_nothing_stays_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without data: a tensor of the CPU among its operands would be refused."""
    monkeypatch.setattr(room, "_usable", torch.device)
    _, _, mdp, twin = draw(4, sizes=(2, 5), n_agents=(2, 3), n_coordinates=(3, 4))
    simulator = Simulator(mdp, twin, device="meta")
    states = simulator.start(3, None)
    following, actions = simulator.step(states, None)
    results = (following, actions, simulator.reward(states, actions), simulator.entropy(states))
    held = [
        value
        for part in (*simulator._agents, *simulator._kernels)
        for value in (part.thresholds, part.target, part.lookup.base)
    ]
    columns = [c for part in (*simulator._agents, *simulator._kernels) for c in part.lookup.columns]
    for tensor in (*results, *held, *(index for _, index, _ in columns)):
        assert tensor is None or tensor.device.type == "meta"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu'; choose cpu, cuda or cuda:i"),
        ("meta", "device is 'meta', which is not supported"),
        ("cuda:99", r"device is 'cuda:99', but \d+ CUDA devices are at hand"),
    ],
)
def test_devices_that_are_not_there_are_refused(device: str, message: str) -> None:
    _, _, mdp, twin = draw(0)
    with pytest.raises(tl.InputError, match=message):
        Simulator(mdp, twin, device=device)


def test_policies_of_another_model_are_refused() -> None:
    small, large = sysadmin(n=4), sysadmin(n=5)
    policy = tl.SoftmaxPolicy.tabular(small, tl.neighbourhood_scopes(small))
    blind = tl.SoftmaxPolicy.tabular(small, [()] * 4)
    with pytest.raises(tl.InputError):
        Simulator(large, policy)
    with pytest.raises(tl.InputError, match="has 4 agents, but the model has 5"):
        Simulator(large, PolicyTables.read(policy))
    with pytest.raises(tl.InputError, match="other scopes than the simulator's"):
        Simulator(small, policy).renewed(blind)
    one = tl.FactoredMDP([3], [2] * 4, [tl.LocalKernel((), (), np.full(3, 1 / 3))], [])
    with pytest.raises(tl.InputError, match="agent 0 sees coordinate 3, but the model has 1"):
        Simulator(one, PolicyTables.read(policy))
    kernels = [tl.LocalKernel((), (), np.full(3, 1 / 3))] * 4
    wide = tl.FactoredMDP([3] * 4, [2] * 4, kernels, [])
    message = r"agent 0 has sizes \(2, 2, 2\).*they are \(3, 3, 2\)"
    with pytest.raises(tl.InputError, match=message):
        Simulator(wide, PolicyTables.read(policy))
