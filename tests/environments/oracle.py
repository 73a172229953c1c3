"""What the tests of the families measure with: joint models, optima and influence, by enumeration.

Works on the tables of a model through `reference`, which shares no code with the package.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import reference

from torchloc.mdp import FactoredMDP

Array = np.ndarray
Law = Callable[[int, tuple[int, ...], tuple[int, ...]], float]


def as_reference(mdp: FactoredMDP) -> reference.Model:
    """The same model with one table a coordinate and a term; what counts is written out."""
    mdp = mdp.tabulated()
    kernels: list[reference.Term] = [((), (), np.zeros(1))] * mdp.n_coordinates
    for batch in mdp.kernels:
        tables = np.broadcast_to(batch.table, (len(batch), *batch.table.shape[1:]))
        for j, s, a, table in zip(
            batch.coordinates, batch.states.tolist(), batch.actions.tolist(), tables, strict=True
        ):
            kernels[j] = (tuple(s), tuple(a), table)
    rewards = [
        (tuple(s), tuple(a), batch.table[min(row, len(batch.table) - 1)])
        for batch in mdp.rewards
        for row, (s, a) in enumerate(
            zip(batch.states.tolist(), batch.actions.tolist(), strict=True)
        )
    ]
    return reference.Model(
        tuple(mdp.state_sizes.tolist()), tuple(mdp.action_sizes.tolist()), kernels, rewards
    )


def optimum(mdp: FactoredMDP, width: float = 1e-10) -> tuple[float, Array]:
    """Largest average reward over joint policies, within `width`, and a best action a state.

    Relative value iteration, damped against periodic chains. With d = T v − v the optimum lies
    between min d and max d (Odoni), so the bracket itself ends the iteration.
    """
    model = as_reference(mdp)
    kernel, reward = reference.transition(model), reference.reward(model)
    value = np.zeros(len(kernel))
    for _ in range(100_000):
        q = reward + kernel @ value
        drift = q.max(axis=1) - value
        if drift.max() - drift.min() < width:
            return float(drift.max() + drift.min()) / 2, model.actions[q.argmax(axis=1)]
        value += 0.9 * drift
        value -= value[0]
    raise RuntimeError("relative value iteration did not close its bracket")


def greedy(mdp: FactoredMDP, actions: Array) -> reference.Policy:
    """The deterministic policy of one action row a joint state; every agent sees everything."""
    model = as_reference(mdp)
    scopes = [tuple(range(model.n_coordinates))] * model.n_agents
    tables = [actions[:, k].reshape(model.state_sizes) for k in range(model.n_agents)]
    return reference.greedy_policy(model, scopes, tables)


def from_probabilities(
    scopes: Sequence[tuple[int, ...]], tables: Sequence[Array]
) -> reference.Policy:
    """Softmax policy at temperature 1 with these probabilities."""
    with np.errstate(divide="ignore"):
        return reference.Policy(list(scopes), [np.log(t) for t in tables], np.ones(len(tables)))


def uniform(mdp: FactoredMDP) -> reference.Policy:
    """Every agent blind and uniform."""
    return from_probabilities(
        [()] * mdp.n_agents, [np.full(int(size), 1.0 / size) for size in mdp.action_sizes]
    )


def state_influence(mdp: FactoredMDP) -> Array:
    """Dense E^s from the batches' own method."""
    result = np.zeros((mdp.n_coordinates, mdp.n_coordinates))
    for batch in mdp.kernels:
        influence = batch.state_influence()
        result[batch.coordinates[:, None], batch.state_parents] = influence
    return result


def action_influence(mdp: FactoredMDP) -> Array:
    """Dense E^a from the batches' own method."""
    result = np.zeros((mdp.n_coordinates, mdp.n_agents))
    for batch in mdp.kernels:
        influence = batch.action_influence()
        result[batch.coordinates[:, None], batch.action_parents] = influence
    return result


def floor(mdp: FactoredMDP) -> float:
    """ρ(E^s)."""
    return reference.spectral_radius(state_influence(mdp))


def check_influence(mdp: FactoredMDP) -> None:
    """E^s and E^a of the batches against enumeration of all pairs of joint states and actions."""
    model = as_reference(mdp)
    # Maxima of the same sums of differences of table entries, in different orders: a few ulp.
    slack = 8 * 2.0**-53
    np.testing.assert_allclose(
        state_influence(mdp), reference.state_sensitivity(model), rtol=0, atol=slack
    )
    np.testing.assert_allclose(
        action_influence(mdp), reference.action_sensitivity(model), rtol=0, atol=slack
    )


def check_law(mdp: FactoredMDP, law: Law) -> None:
    """Every entry P_j(1 | s, a) of a binary model against `law(j, s, a)` of full tuples s and a."""
    model = as_reference(mdp)
    for j, kernel in enumerate(model.kernels):
        table = reference.at_pairs(model, kernel)[..., 1]
        joint = itertools.product(model.states.tolist(), model.actions.tolist())
        expected = np.array([law(j, tuple(s), tuple(a)) for s, a in joint])
        # A handful of operations on numbers of at most 1.
        np.testing.assert_allclose(table.ravel(), expected, rtol=0, atol=2.0**-50)


def check_reward(mdp: FactoredMDP, reward: Callable[[Array, Array], float]) -> None:
    """Every joint reward against `reward(s, a)`."""
    model = as_reference(mdp)
    expected = [[reward(s, a) for a in model.actions] for s in model.states]
    np.testing.assert_allclose(reference.reward(model), expected, rtol=0, atol=2.0**-46)


def product_chain(mdp: FactoredMDP, tables: Sequence[Array]) -> Array:
    """P^π (|S|, |S|) where agent k moves coordinate k alone and sees the state parents of kernel k.

    `tables[k]` is (*S[parents of k], A_k), in the kernel's order of parents.
    """
    model = as_reference(mdp)
    matrix = np.ones((len(model.states), 1))
    for (states, actions, table), chosen in zip(model.kernels, tables, strict=True):
        assert len(actions) == 1
        law = (table * chosen[..., None]).sum(axis=-2)
        rows = law[tuple(model.states[:, i] for i in states)]
        matrix = (matrix[:, :, None] * rows[:, None, :]).reshape(len(model.states), -1)
    return matrix
