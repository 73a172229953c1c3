"""The slow oracle: every quantity of the theory, from its definition, by enumeration.

Shares no code with the package and imports only numpy and scipy. Symbols: N coordinates, K agents,
S and A the joint state and action spaces. Joint states and actions are listed in C order (the last
coordinate runs fastest): a function on states is a flat (|S|,) array,
`f.reshape(model.state_sizes)` its tensor. Tables of an agent live on its scope, in the scope's own
order: (*S[scope_k], A_k); `at_states` spreads them over the joint states. Rows of a sensitivity
matrix are influenced, columns are the cause. TV is half the l1 distance. `entropy` is the weight
tau_k of Ent pi_k in the reward, a number or (K,): 0 for the reward objective, the temperatures for
J_tau.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components

Array = np.ndarray
Term = tuple[tuple[int, ...], tuple[int, ...], Array]
RUNGS = ("coupled", "exact", "span", "tanh", "paper", "scope")


def grid(sizes: Sequence[int]) -> Array:
    """All points of a product of ranges in C order: (prod sizes, len(sizes))."""
    points = list(itertools.product(*map(range, sizes)))
    return np.array(points, int).reshape(len(points), len(sizes))


@dataclass(frozen=True, eq=False)
class Model:
    """Kernel j drives coordinate j: (states, actions, table (*S[states], *A[actions], S_j)).

    A reward term is (states, actions, table (*S[states], *A[actions])); r is their sum.
    """

    state_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    kernels: list[Term]
    rewards: list[Term]

    @property
    def n_coordinates(self) -> int:
        return len(self.state_sizes)

    @property
    def n_agents(self) -> int:
        return len(self.action_sizes)

    @cached_property
    def states(self) -> Array:
        return grid(self.state_sizes)

    @cached_property
    def actions(self) -> Array:
        return grid(self.action_sizes)


@dataclass(frozen=True, eq=False)
class Policy:
    """pi_k = softmax(z_k / tau_k) on O_k; z_k = `logits[k]`: (*S[scope_k], A_k), -inf allowed."""

    scopes: list[tuple[int, ...]]
    logits: list[Array]
    temperature: Array

    @property
    def log_probabilities(self) -> list[Array]:
        rows = [z / t for z, t in zip(self.logits, self.temperature, strict=True)]
        rows = [x - x.max(-1, keepdims=True) for x in rows]
        return [x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in rows]

    @property
    def probabilities(self) -> list[Array]:
        return [np.exp(x) for x in self.log_probabilities]

    def replace(self, k: int, logits: Array) -> Policy:
        """The same policy with agent k's logits changed."""
        tables = [*self.logits[:k], logits, *self.logits[k + 1 :]]
        return Policy(self.scopes, tables, self.temperature)


# Tables spread over the joint space ---------------------------------------------------------------


def at_states(model: Model, scope: Sequence[int], table: Array) -> Array:
    """A table (*S[scope], ...) read at every joint state: (|S|, ...)."""
    index = tuple(model.states[:, i] for i in scope)
    return np.broadcast_to(table[index], (len(model.states), *table.shape[len(scope) :]))


def at_pairs(model: Model, term: Term) -> Array:
    """A table (*S[states], *A[actions], ...) read at every joint (s, a): (|S|, |A|, ...)."""
    states, actions, table = term
    index = tuple(model.states[:, None, i] for i in states)
    index += tuple(model.actions[None, :, k] for k in actions)
    shape = (len(model.states), len(model.actions), *table.shape[len(index) :])
    return np.broadcast_to(table[index], shape)


def transition(model: Model) -> Array:
    """P(s' | s, a) = prod_j P_j(s'_j | s, a): (|S|, |A|, |S|)."""
    factors = [at_pairs(model, x)[:, :, model.states[:, j]] for j, x in enumerate(model.kernels)]
    return np.prod(factors, axis=0)


def asynchronous_transition(model: Model, sites: Array) -> Array:
    """B.6, one site j ~ nu moves: sum_j nu_j 1{s'_-j = s_-j} P_j(s'_j | s, a): (|S|, |A|, |S|)."""
    result = np.zeros((len(model.states), len(model.actions), len(model.states)))
    for j, kernel in enumerate(model.kernels):
        others = np.delete(model.states, j, axis=1)
        stays = (others[:, None] == others[None]).all(-1)
        result += sites[j] * stays[:, None, :] * at_pairs(model, kernel)[:, :, model.states[:, j]]
    return result


def reward(model: Model) -> Array:
    """r(s, a), the sum of the local terms: (|S|, |A|)."""
    zero = np.zeros((len(model.states), len(model.actions)))
    return sum((at_pairs(model, term) for term in model.rewards), zero)


def agent_policy(model: Model, policy: Policy, k: int) -> Array:
    """pi_k(a_k | s_{O_k}): (|S|, A_k)."""
    return at_states(model, policy.scopes[k], policy.probabilities[k])


def product_policy(model: Model, policy: Policy, agents: Sequence[int] | None = None) -> Array:
    """prod of pi_k(a_k | s) over `agents` (all by default) at every joint action: (|S|, |A|)."""
    agents = range(model.n_agents) if agents is None else agents
    factors = [agent_policy(model, policy, k)[:, model.actions[:, k]] for k in agents]
    return np.prod([np.ones((len(model.states), len(model.actions))), *factors], axis=0)


def agent_entropy(model: Model, policy: Policy, k: int) -> Array:
    """Ent pi_k(. | s) = -sum_a pi log pi, in nats: (|S|,)."""
    log_p = at_states(model, policy.scopes[k], policy.log_probabilities[k])
    return -kl_terms(np.exp(log_p), log_p).sum(-1)


def policy_transition(kernel: Array, joint_policy: Array) -> Array:
    """P^pi(s' | s) = sum_a pi(a | s) P(s' | s, a): (|S|, |S|)."""
    return np.einsum("sa,sat->st", joint_policy, kernel)


def policy_reward(model: Model, policy: Policy, entropy: float | Array = 0.0) -> Array:
    """r^pi(s) = sum_a pi(a | s) r(s, a) + sum_k tau_k Ent pi_k(. | s): (|S|,)."""
    weights = np.broadcast_to(entropy, model.n_agents)
    bonus = [w * agent_entropy(model, policy, k) for k, w in enumerate(weights)]
    return (product_policy(model, policy) * reward(model)).sum(-1) + np.sum(bonus, axis=0)


# Distances and oscillations -----------------------------------------------------------------------


def total_variation(p: Array, q: Array) -> Array:
    """TV(p, q) = 1/2 sum |p - q| over the last axis."""
    return 0.5 * np.abs(p - q).sum(-1)


def kl_terms(p: Array, log_ratio: Array) -> Array:
    """p * log_ratio with 0 * (anything) = 0."""
    return np.multiply(p, log_ratio, out=np.zeros(np.broadcast(p, log_ratio).shape), where=p > 0)


def kl(log_p: Array, log_q: Array) -> Array:
    """KL(p || q) = sum p (log p - log q) over the last axis, from log probabilities."""
    p = np.exp(log_p)
    gap = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
    return kl_terms(p, gap).sum(-1)


def span(x: Array) -> Array:
    """max - min over the last axis; NaN entries are left out."""
    return np.nanmax(x, -1) - np.nanmin(x, -1)


def pairs(model: Model, i: int) -> tuple[Array, Array]:
    """All ordered pairs (s, t) of joint states that differ in coordinate i and nowhere else."""
    differs = model.states[:, None] != model.states[None]
    return np.nonzero(differs[:, :, i] & (differs.sum(-1) == 1))


def oscillation(model: Model, f: Array) -> Array:
    """delta_i(f) = sup over s, t that differ only in i of |f(s) - f(t)|: (N,)."""
    gaps = [np.abs(f[s] - f[t]) for s, t in (pairs(model, i) for i in range(model.n_coordinates))]
    return np.array([gap.max(initial=0.0) for gap in gaps])


def local_reward_bound(model: Model, policy: Policy, entropy: float | Array = 0.0) -> Array:
    """sum_m delta(r_m^pi) + sum_k tau_k delta(Ent pi_k), a bound on delta of their sum: (N,)."""
    joint = product_policy(model, policy)
    terms = [oscillation(model, (joint * at_pairs(model, m)).sum(-1)) for m in model.rewards]
    weights = np.broadcast_to(entropy, model.n_agents)
    for k, weight in enumerate(weights):
        terms.append(weight * oscillation(model, agent_entropy(model, policy, k)))
    return np.sum([np.zeros(model.n_coordinates), *terms], axis=0)


# Sensitivities ------------------------------------------------------------------------------------


def state_sensitivity(model: Model) -> Array:
    """E^s[j, i] = sup TV(P_j(.|s,a), P_j(.|t,a)) over a; s, t differ only in i: (N, N)."""
    result = np.zeros((model.n_coordinates, model.n_coordinates))
    for j, i in np.ndindex(result.shape):
        s, t = pairs(model, i)
        table = at_pairs(model, model.kernels[j])
        result[j, i] = total_variation(table[s], table[t]).max(initial=0.0)
    return result


def action_sensitivity(model: Model) -> Array:
    """E^a[j, k] = sup TV(P_j(.|s,a), P_j(.|s,b)) over s; a, b differ only in a_k: (N, K)."""
    result = np.zeros((model.n_coordinates, model.n_agents))
    differs = model.actions[:, None] != model.actions[None]
    for j, k in np.ndindex(result.shape):
        a, b = np.nonzero(differs[:, :, k] & (differs.sum(-1) == 1))
        table = at_pairs(model, model.kernels[j])
        result[j, k] = total_variation(table[:, a], table[:, b]).max(initial=0.0)
    return result


def action_sup(model: Model) -> Array:
    """N = K: entry (j, i) is the sup of TV(P_j) when z_i = (s_i, a_i) changes jointly: (N, N)."""
    size = len(model.states) * len(model.actions)
    points = [np.concatenate([s, a]) for s in model.states for a in model.actions]
    differs = np.array(points)[:, None] != np.array(points)[None]
    differs = differs[..., : model.n_coordinates] | differs[..., model.n_coordinates :]
    result = np.zeros((model.n_coordinates, model.n_coordinates))
    for j, i in np.ndindex(result.shape):
        x, y = np.nonzero(differs[..., i] & (differs.sum(-1) == 1))
        table = at_pairs(model, model.kernels[j]).reshape(size, -1)
        result[j, i] = total_variation(table[x], table[y]).max(initial=0.0)
    return result


def logit_difference(u: Array, v: Array) -> Array:
    """u - v; NaN (left out) where both are -inf, infinite where one is."""
    both = np.isneginf(u) & np.isneginf(v)
    return np.subtract(u, v, out=np.full(u.shape, np.nan), where=~both)


def logit_spans(model: Model, policy: Policy) -> Array:
    """Sup over s, t that differ only in i of max_a - min_a of z_k(s, a) - z_k(t, a): (K, N)."""
    result = np.zeros((model.n_agents, model.n_coordinates))
    for k, i in np.ndindex(result.shape):
        s, t = pairs(model, i)
        z = at_states(model, policy.scopes[k], policy.logits[k])
        result[k, i] = span(logit_difference(z[s], z[t])).max(initial=0.0)
    return result


def logit_lipschitz(model: Model, policy: Policy) -> Array:
    """L[k, i] = sup over s, t that differ only in i of max_a |z_k(s, a) - z_k(t, a)|: (K, N).

    Logits are centred to zero mean over the actions that are not -inf; an action that is -inf at
    both s and t is left out; -inf at one of them makes L infinite.
    """
    result = np.zeros((model.n_agents, model.n_coordinates))
    for k, i in np.ndindex(result.shape):
        s, t = pairs(model, i)
        z = at_states(model, policy.scopes[k], policy.logits[k])
        z = z - np.mean(z, -1, keepdims=True, where=np.isfinite(z))
        result[k, i] = np.nanmax(np.abs(logit_difference(z[s], z[t])), initial=0.0)
    return result


def policy_sensitivity(model: Model, policy: Policy, rung: str = "exact") -> Array:
    """Pi[k, i] on a rung: (K, N). Entries are at most 1, and 0 where agent k does not see i.

    exact: sup of TV(pi_k(.|s), pi_k(.|t)) over s, t that differ only in i.
    span: tanh(span / (4 tau_k)). tanh: tanh(L / (2 tau_k)). paper: min(1, L / (2 tau_k)).
    scope: 1 where i is in O_k.
    """
    tau = np.asarray(policy.temperature)[:, None]
    if rung == "span":
        return np.tanh(logit_spans(model, policy) / (4 * tau))
    if rung == "tanh":
        return np.tanh(logit_lipschitz(model, policy) / (2 * tau))
    if rung == "paper":
        return np.minimum(1.0, logit_lipschitz(model, policy) / (2 * tau))
    result = np.zeros((model.n_agents, model.n_coordinates))
    for k, i in np.ndindex(result.shape):
        s, t = pairs(model, i)
        p = agent_policy(model, policy, k)
        exact = total_variation(p[s], p[t]).max(initial=0.0)
        result[k, i] = {"exact": exact, "scope": float(i in policy.scopes[k])}[rung]
    return result


def marginal_influence(model: Model, policy: Policy) -> Array:
    """C^pi[j, i] = sup over s, t that differ only in i of TV(P_j^pi(.|s), P_j^pi(.|t)): (N, N)."""
    joint = product_policy(model, policy)
    result = np.zeros((model.n_coordinates, model.n_coordinates))
    for j, i in np.ndindex(result.shape):
        s, t = pairs(model, i)
        marginal = np.einsum("sa,sax->sx", joint, at_pairs(model, model.kernels[j]))
        result[j, i] = total_variation(marginal[s], marginal[t]).max(initial=0.0)
    return result


def influence(model: Model, policy: Policy, rung: str = "coupled") -> Array:
    """H = E^s + E^a Pi on the rung's Pi, or K^pi for `coupled`: (N, N)."""
    if rung == "coupled":
        return coupled_influence(model, policy)
    sensitivity = policy_sensitivity(model, policy, rung)
    return state_sensitivity(model) + action_sensitivity(model) @ sensitivity


def asynchronous_influence(matrix: Array, sites: Array) -> Array:
    """(I - diag nu) + diag nu H, for H (or C^pi) in rows-are-influenced form: (N, N)."""
    return np.diag(1.0 - sites) + sites[:, None] * matrix


# The coupled certificate --------------------------------------------------------------------------


def shared_agents(model: Model) -> list[int]:
    """Agents whose action moves more than one coordinate, by E^a."""
    return [int(k) for k in np.nonzero((action_sensitivity(model) > 0).sum(0) > 1)[0]]


def maximal_coupling(p: Array, q: Array) -> Array:
    """J = diag(min(p, q)) + (p - min)(q - min)^T / TV(p, q), over the last axis: (..., A, A)."""
    low = np.minimum(p, q)
    distance = total_variation(p, q)[..., None, None]
    outer = (p - low)[..., :, None] * (q - low)[..., None, :]
    outer = np.divide(outer, distance, out=np.zeros_like(outer), where=distance > 0)
    return low[..., :, None] * np.eye(p.shape[-1]) + outer


def averaged_kernels(model: Model, policy: Policy) -> list[Array]:
    """P~_j(. | s, a_shared), private actions averaged out: N arrays (|S|, |A_shared|, S_j)."""
    shared = shared_agents(model)
    private = product_policy(model, policy, [k for k in range(model.n_agents) if k not in shared])
    options = grid([model.action_sizes[k] for k in shared])
    belongs = (model.actions[:, None, shared] == options[None]).all(-1).astype(float)
    tables = [at_pairs(model, kernel) for kernel in model.kernels]
    return [np.einsum("sa,sax,ab->sbx", private, table, belongs) for table in tables]


def shared_coupling(model: Model, policy: Policy, s: Array, t: Array) -> Array:
    """Law of the shared joint actions (A, A') from states s and t: (pairs, |A_shared|, |A_shared|).

    Each shared action is coupled by `maximal_coupling`, independently across agents.
    """
    shared = shared_agents(model)
    options = grid([model.action_sizes[k] for k in shared])
    result = np.ones((len(s), len(options), len(options)))
    for column, k in enumerate(shared):
        p = agent_policy(model, policy, k)
        one = maximal_coupling(p[s], p[t])
        result = result * one[:, options[:, None, column], options[None, :, column]]
    return result


def coupled_influence(model: Model, policy: Policy, steps: int = 1) -> Array:
    """K^pi[j, i] = sup E TV(P~_j(.|s, A), P~_j(.|t, A')) over s, t that differ only in i: (N, N).

    For `steps` = m the matrix K^(m): the sup of D_m(s, t)_j over the same pairs
    (`coupled_distance`).
    """
    kernels = averaged_kernels(model, policy)
    result = np.zeros((model.n_coordinates, model.n_coordinates))
    distance = coupled_distance(model, policy, steps) if steps != 1 else None
    for i in range(model.n_coordinates):
        s, t = pairs(model, i)
        weights = shared_coupling(model, policy, s, t)
        for j, kernel in enumerate(kernels):
            if distance is None:
                gaps = total_variation(kernel[s][:, :, None], kernel[t][:, None])
                result[j, i] = (weights * gaps).sum((-1, -2)).max(initial=0.0)
            else:
                result[j, i] = distance[s, t, j].max(initial=0.0)
    return result


def coupled_distance(model: Model, policy: Policy, steps: int) -> Array:
    """D_m(s, t)_j, with D_0 = 1{s_j != t_j} and D_{q+1}(s, t) = E D_q(S', T'): (|S|, |S|, N).

    One coupled step from (s, t): the shared actions by `shared_coupling`; given them, the
    coordinates independently, each by `maximal_coupling` of P~_j(. | s, A) and P~_j(. | t, A').
    Needs |S|^4 numbers: for at most some 50 joint states.
    """
    distance = (model.states[:, None] != model.states[None]).astype(float)
    if steps == 0:
        return distance
    size, sizes = len(model.states), model.state_sizes
    kernels = averaged_kernels(model, policy)
    step = np.empty((size, size, size, size))
    for s, t in np.ndindex(size, size):
        weights = shared_coupling(model, policy, np.array([s]), np.array([t]))[0]
        law = weights[..., None, None]
        for kernel in kernels:
            one = maximal_coupling(*np.broadcast_arrays(kernel[s][:, None], kernel[t][None]))
            law = law[..., :, None, :, None] * one[..., None, :, None, :]
            law = law.reshape(*weights.shape, law.shape[2] * law.shape[3], -1)
        step[s, t] = law.sum((0, 1)).reshape(np.prod(sizes), np.prod(sizes))
    for _ in range(steps):
        distance = np.einsum("stuv,uvj->stj", step, distance)
    return distance


# Spectra and series -------------------------------------------------------------------------------


def spectral_radius(matrix: Array) -> float:
    """Largest |eigenvalue|, dense, one strongly connected component at a time (0 if nilpotent)."""
    count, label = connected_components(matrix != 0, connection="strong")
    blocks = [matrix[np.ix_(label == c, label == c)] for c in range(count)]
    return max((float(np.abs(np.linalg.eigvals(block)).max()) for block in blocks), default=0.0)


def is_contraction(matrix: Array) -> bool:
    """rho < 1 beyond the rounding of the eigenvalues (a computed 1 - 1e-16 counts as 1)."""
    return spectral_radius(matrix) < 1.0 - 1e-10


def delta_hat(influence: Array, b: Array, kappa: int, discount: float = 1.0) -> Array:
    """sum_{t <= kappa} M^t b with M = gamma * influence^T: (N,)."""
    m = discount * influence.T
    return sum((np.linalg.matrix_power(m, t) @ b for t in range(kappa + 1)), np.zeros(len(b)))


def tail(influence: Array, b: Array, kappa: int, discount: float = 1.0) -> Array:
    """(I - M)^-1 M^(kappa+1) b with M = gamma * influence^T; infinite where rho(M) >= 1: (N,).

    `kappa = -1` gives the bound on delta(h) itself.
    """
    m = discount * influence.T
    if not is_contraction(m):
        return np.full(len(b), np.inf)
    return np.linalg.solve(np.eye(len(b)) - m, np.linalg.matrix_power(m, kappa + 1) @ b)


def several_step_tail(powers: Sequence[Array], b: Array, kappa: int) -> Array:
    """sum_{t > kappa} M_m^(t div m) M_(t mod m) b, from powers = [K^(1), ..., K^(m)]: (N,).

    `kappa = -1` is theory's (I - M_m)^-1 sum_{q < m} M_q b, with M_q = (K^(q))^T and M_0 = I.
    """
    steps, last = len(powers), powers[-1].T
    if not is_contraction(last):
        return np.full(len(b), np.inf)
    short = [b, *(k.T @ b for k in powers[:-1])]
    whole = np.linalg.solve(np.eye(len(b)) - last, np.sum(short, axis=0))
    head = [np.linalg.matrix_power(last, t // steps) @ short[t % steps] for t in range(kappa + 1)]
    return whole - np.sum(head, axis=0)


def epsilon(action_influence: Array, tails: Array) -> Array:
    """eps_k = sum_j E^a[j, k] tail_j with 0 * inf = 0: (K,).

    Discounted: pass gamma E^a. Asynchronous: pass diag(nu) E^a.
    """
    product = np.zeros_like(action_influence)
    np.multiply(action_influence, tails[:, None], out=product, where=action_influence > 0)
    return product.sum(0)


# Evaluation ---------------------------------------------------------------------------------------


def closed_classes(matrix: Array) -> list[Array]:
    """The closed communicating classes of a stochastic matrix, as index arrays."""
    count, label = connected_components(matrix > 0, connection="strong")
    inside = [label == c for c in range(count)]
    return [np.nonzero(c)[0] for c in inside if not (matrix[np.ix_(c, ~c)] > 0).any()]


def class_law(matrix: Array, members: Array) -> Array:
    """The stationary law that lives on one closed class: d P = d, sum d = 1, by least squares."""
    block = matrix[np.ix_(members, members)]
    system = np.vstack([block.T - np.eye(len(members)), np.ones(len(members))])
    law = np.zeros(len(matrix))
    law[members] = np.linalg.lstsq(system, np.append(np.zeros(len(members)), 1.0), rcond=None)[0]
    return law


def stationary(matrix: Array) -> Array:
    """d^pi: d P = d, sum d = 1; 0 at transient states. ValueError unless one closed class."""
    classes = closed_classes(matrix)
    if len(classes) != 1:
        raise ValueError(f"{len(classes)} closed classes, so no unique stationary law")
    return class_law(matrix, classes[0])


def poisson(matrix: Array, r: Array) -> Array:
    """h - P h = r - d.r with d.h = 0, by least squares: (|S|,)."""
    law = stationary(matrix)
    system = np.vstack([np.eye(len(matrix)) - matrix, law])
    return np.linalg.lstsq(system, np.append(r - law @ r, 0.0), rcond=None)[0]


def truncated_value(matrix: Array, r: Array, kappa: int, discount: float = 1.0) -> Array:
    """sum_{t <= kappa} (gamma P)^t r: (|S|,). Average reward: pass r - d.r to get h^_kappa."""
    step = discount * matrix
    terms = [np.linalg.matrix_power(step, t) @ r for t in range(kappa + 1)]
    return np.sum([np.zeros(len(r)), *terms], axis=0)


def discounted_value(matrix: Array, r: Array, discount: float) -> Array:
    """V = (I - gamma P)^-1 r: (|S|,)."""
    return np.linalg.solve(np.eye(len(matrix)) - discount * matrix, r)


def discounted_occupancy(matrix: Array, initial: Array, discount: float) -> Array:
    """(1 - gamma) sum_t gamma^t (law of S_t from `initial`): (|S|,)."""
    return (1 - discount) * np.linalg.solve((np.eye(len(matrix)) - discount * matrix).T, initial)


@dataclass(frozen=True, eq=False)
class Chain:
    """A policy's chain: kernel, matrix, (augmented) reward, stationary law, average, Poisson h."""

    kernel: Array
    matrix: Array
    reward: Array
    stationary: Array
    average: float
    poisson: Array

    def truncated(self, kappa: int) -> Array:
        """h^_kappa = sum_{t <= kappa} P^t (r^pi - average): (|S|,)."""
        return truncated_value(self.matrix, self.reward - self.average, kappa)


def chain(
    model: Model, policy: Policy, entropy: float | Array = 0.0, kernel: Array | None = None
) -> Chain:
    """Solve for r^pi + sum_k tau_k Ent pi_k; `kernel` defaults to the synchronous one."""
    kernel = transition(model) if kernel is None else kernel
    matrix = policy_transition(kernel, product_policy(model, policy))
    r = policy_reward(model, policy, entropy)
    law = stationary(matrix)
    return Chain(kernel, matrix, r, law, float(law @ r), poisson(matrix, r))


def odoni_bounds(matrix: Array, r: Array, h: Array) -> tuple[float, float]:
    """min and max of r + P h - h: they enclose the average reward for every h."""
    drift = r + matrix @ h - h
    return float(drift.min()), float(drift.max())


def advantage(
    model: Model, kernel: Array, value: Array, average: float = 0.0, discount: float = 1.0
) -> Array:
    """A(s, a) = r(s, a) - average + gamma sum_y P(y | s, a) value(y) - value(s): (|S|, |A|).

    r alone also for the entropy objective: the entropies of the first step do not depend on a.
    """
    return reward(model) - average + discount * kernel @ value - value[:, None]


def block_values(model: Model, policy: Policy, advantages: Array, k: int) -> Array:
    """g_k(s, a_k) = E_{a_-k ~ prod_{l != k} pi_l(.|s)} A(s, (a_k, a_-k)): (|S|, A_k)."""
    others = product_policy(model, policy, [m for m in range(model.n_agents) if m != k])
    chooses = np.eye(model.action_sizes[k])[model.actions[:, k]]
    return np.einsum("sa,sa,ax->sx", others, advantages, chooses)


# Improvement --------------------------------------------------------------------------------------


def uniform_law(model: Model) -> Array:
    """The uniform law on joint states: (|S|,)."""
    return np.full(len(model.states), 1.0 / len(model.states))


def product_law(model: Model, laws: Sequence[Array]) -> Array:
    """prod_i laws[i](s_i): (|S|,)."""
    return np.prod([law[model.states[:, i]] for i, law in enumerate(laws)], axis=0)


def scope_average(model: Model, scope: Sequence[int], g: Array, law: Array) -> Array:
    """g-(s_O, a) = E_{s ~ law(. | s_O)} g(s, a); uniform where law(s_O) = 0: (*S[scope], A_k)."""
    sizes = [model.state_sizes[i] for i in scope]
    result = np.empty((*sizes, g.shape[-1]))
    for point in np.ndindex(*sizes):
        inside = (model.states[:, list(scope)] == np.array(point, int)).all(-1)
        weights = np.where(inside, law, 0.0)
        weights = weights if weights.sum() > 0 else inside.astype(float)
        result[point] = weights @ g / weights.sum()
    return result


def scope_error(model: Model, scope: Sequence[int], g: Array, average: Array) -> Array:
    """omega_k(s_O) = sup over s outside O of span_a(g(s, .) - g-(s_O, .)): (*S[scope])."""
    gaps = span(g - at_states(model, scope, average))
    result = np.empty([model.state_sizes[i] for i in scope])
    for point in np.ndindex(result.shape):
        result[point] = gaps[(model.states[:, list(scope)] == np.array(point, int)).all(-1)].max()
    return result


def prox_logits(z: Array, g: Array, tau: float, prox: float, objective: str = "reward") -> Array:
    """Logits at temperature tau of the maximiser of <mu, g> - prox KL(mu || softmax(z / tau)).

    reward: z + (tau / prox) g. entropy (tau Ent mu is added): (prox z + tau g) / (prox + tau),
    and g for prox = 0.
    """
    if objective == "reward":
        return z + tau / prox * g
    return g if prox == 0 else (prox * z + tau * g) / (prox + tau)


def objective_value(model: Model, policy: Policy, entropy: float | Array = 0.0) -> float:
    """Stationary average of r^pi + sum_k tau_k Ent pi_k: r- for weight 0, J_tau otherwise."""
    return chain(model, policy, entropy).average


def weighted(weight: Array, x: Array) -> Array:
    """weight * x with 0 * inf = 0."""
    shape = np.broadcast_shapes(np.shape(weight), np.shape(x))
    return np.multiply(weight, x, out=np.zeros(shape), where=(weight != 0) & (x != 0))


def direct_ledger(
    law: Array,
    log_new: Array,
    log_old: Array,
    g: Array,
    *,
    entropy: float = 0.0,
    epsilon: float = 0.0,
    discount: float = 1.0,
) -> float:
    """A lower bound on the gain of any change of agent k from pi_k to mu_k, the others fixed.

    E_{d^mu}[<mu_k - pi_k, g^_k> + tau'(Ent mu_k - Ent pi_k)] - eps_k E_{d^mu} TV(mu_k, pi_k),
    divided by 1 - gamma when discounted. `law` is d^mu (discounted: the occupancy of mu);
    `log_new`, `log_old`, `g` are (|S|, A_k); eps_k bounds span_a(g^_k - g_k). With the exact g_k
    and eps_k = 0 it is the gain.
    """
    new, old = np.exp(log_new), np.exp(log_old)
    inner = ((new - old) * g).sum(-1)
    inner += entropy * (kl_terms(old, log_old).sum(-1) - kl_terms(new, log_new).sum(-1))
    error = weighted(total_variation(new, old), np.asarray(epsilon))
    return float(law @ (inner - error)) / (1.0 if discount == 1.0 else 1.0 - discount)


def named_ledger(
    law: Array,
    log_new: Array,
    log_old: Array,
    *,
    prox: float,
    temperature: float,
    objective: str = "reward",
    epsilon: float = 0.0,
    omega: Array | float = 0.0,
    fit: Array | float = 0.0,
    stale: Array | float = 0.0,
    discount: float = 1.0,
) -> dict[str, float]:
    """A lower bound (`guarantee`) on the gain of one prox block, by terms averaged over d^mu.

    With tau' = tau for `entropy` and 0 for `reward`, `prox_gain` averages
    prox KL(mu || pi) + (prox + tau') KL(pi || mu). Subtracted are the averages of TV(mu, pi) times
    `truncation_error`: eps_k, which bounds span_a(g^_k - g_k);
    `scope_error`: omega_k(s_O), spread over the joint states (|S|,);
    `fit_error`: span_a(e) (prox + tau') / tau, `fit` = e = realised minus target logits (|S|, A_k);
    `staleness`: span_a of `stale` = g-_used - g-_now (|S|, A_k).
    The factor of e: the target is tau / (prox + tau') times (g-_used + prox log pi), so an error e
    in it is an error e (prox + tau') / tau in g-_used.
    """
    bonus = {"reward": 0.0, "entropy": temperature}[objective]
    distance = total_variation(np.exp(log_new), np.exp(log_old))
    forward, backward = kl(log_new, log_old), kl(log_old, log_new)
    gain = weighted(np.asarray(prox), forward) + weighted(np.asarray(prox + bonus), backward)
    fit, stale = (np.broadcast_to(x, log_new.shape) for x in (fit, stale))
    errors = {
        "truncation_error": np.asarray(epsilon),
        "scope_error": np.asarray(omega),
        "fit_error": span(fit) * (prox + bonus) / temperature,
        "staleness": span(stale),
    }
    scale = 1.0 if discount == 1.0 else 1.0 / (1.0 - discount)
    terms = {name: float(law @ weighted(distance, x)) * scale for name, x in errors.items()}
    terms["prox_gain"] = float(law @ gain) * scale
    return {**terms, "guarantee": terms["prox_gain"] - sum(terms[name] for name in errors)}


def true_dependence(
    model: Model,
    scopes: Sequence[tuple[int, ...]],
    kappa: int,
    rng: np.random.Generator,
    objective: str = "reward",
    trials: int = 3,
) -> Array:
    """[k, l] true where g^_k (truncated, centred over a_k) changes with pi_l, l != k: (K, K).

    pi_l is redrawn at random: a dependence that no policy shows is never seen, any other almost
    surely. Changes under 1e-11 of the size of g^_k count as rounding.
    """
    kernel = transition(model)

    def centred(policy: Policy) -> list[Array]:
        matrix = policy_transition(kernel, product_policy(model, policy))
        r = policy_reward(model, policy, policy.temperature * (objective == "entropy"))
        a = advantage(model, kernel, truncated_value(matrix, r, kappa))
        values = [block_values(model, policy, a, k) for k in range(model.n_agents)]
        return [g - g.mean(-1, keepdims=True) for g in values]

    result = np.zeros((model.n_agents, model.n_agents), bool)
    for _ in range(trials):
        options = {"scopes": scopes, "scale": (1.0, 1.0), "temperature": (1.0, 1.0)}
        base = random_policy(rng, model, **options)
        other = random_policy(rng, model, **options)
        before = centred(base)
        for m in range(model.n_agents):
            after = centred(base.replace(m, other.logits[m]))
            for k in range(model.n_agents):
                size = 1.0 + np.abs(before[k]).max()
                result[k, m] |= k != m and np.abs(after[k] - before[k]).max() > 1e-11 * size
    return result


# Optimal control ----------------------------------------------------------------------------------


def optimal_average(model: Model) -> float:
    """Largest average reward over all joint policies (from the best start), by linear programming.

    max sum x(s, a) r(s, a) over x >= 0, sum x = 1, sum_a x(y, a) = sum_{s, a} x(s, a) P(y | s, a).
    """
    kernel = transition(model)
    size, n_actions = kernel.shape[:2]
    leaves = np.repeat(np.eye(size), n_actions, axis=0)
    balance = (leaves - kernel.reshape(-1, size)).T
    equations = np.vstack([balance, np.ones(size * n_actions)])
    answer = linprog(-reward(model).ravel(), A_eq=equations, b_eq=np.append(np.zeros(size), 1.0))
    if answer.status != 0:
        raise RuntimeError(f"the linear program failed: {answer.message}")
    return -float(answer.fun)


def deterministic_policies(model: Model, scopes: Sequence[tuple[int, ...]]) -> list[list[Array]]:
    """All prod_k A_k^|S_{O_k}| choices of action tables (*S[scope_k]), one an agent."""
    menus = []
    for k, scope in enumerate(scopes):
        sizes = [model.state_sizes[i] for i in scope]
        menu = grid([model.action_sizes[k]] * int(np.prod(sizes)))
        menus.append([row.reshape(sizes) for row in menu])
    return [list(choice) for choice in itertools.product(*menus)]


def greedy_policy(
    model: Model, scopes: Sequence[tuple[int, ...]], tables: Sequence[Array]
) -> Policy:
    """The deterministic policy of action tables (*S[scope_k]): logits 0 and -inf, temperature 1."""
    chosen = [np.eye(size)[table] for size, table in zip(model.action_sizes, tables, strict=True)]
    logits = [np.where(x > 0, 0.0, -np.inf) for x in chosen]
    return Policy(list(scopes), logits, np.ones(model.n_agents))


def best_deterministic(
    model: Model, scopes: Sequence[tuple[int, ...]], budget: int = 20_000
) -> tuple[float, list[Array]]:
    """Largest average reward (best start) over deterministic policies on the scopes; its tables."""
    menus = [np.prod([model.state_sizes[i] for i in scope]) for scope in scopes]
    count = np.prod([float(a) ** m for a, m in zip(model.action_sizes, menus, strict=True)])
    if count > budget:
        raise ValueError(f"{count:.3g} deterministic policies are over the budget of {budget}")
    kernel, table, rows = transition(model), reward(model), np.arange(len(model.states))
    best, argument = -np.inf, []
    for tables in deterministic_policies(model, scopes):
        chosen = [at_states(model, o, x) for o, x in zip(scopes, tables, strict=True)]
        joint = np.ravel_multi_index(chosen, model.action_sizes) if chosen else np.zeros_like(rows)
        matrix, r = kernel[rows, joint], table[rows, joint]
        value = max(float(class_law(matrix, c) @ r) for c in closed_classes(matrix))
        if value > best:
            best, argument = value, tables
    return best, argument


# Random models ------------------------------------------------------------------------------------


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))


def _subset(rng: np.random.Generator, n: int, largest: int) -> tuple[int, ...]:
    # The larger of two draws: the empty set stays possible, but most models are coupled.
    count = rng.integers(0, min(n, largest) + 1, size=2).max()
    return tuple(int(i) for i in rng.permutation(n)[:count])


def _sizes(rng: np.random.Generator, n: int, bounds: tuple[int, int]) -> list[int]:
    # Size 1 teaches little, so it is drawn only one time in eight.
    low = np.where(rng.random(n) < 1 / 8, bounds[0], np.clip(2, *bounds))
    return [int(x) for x in rng.integers(low, bounds[1] + 1)]


def random_model(
    rng: np.random.Generator,
    *,
    n_coordinates: tuple[int, int] = (1, 4),
    n_agents: tuple[int, int] = (1, 3),
    sizes: tuple[int, int] = (1, 3),
    max_parents: int = 3,
    concentration: tuple[float, float] = (1e-3, 3.0),
    n_rewards: tuple[int, int] = (1, 4),
    structure: str = "general",
    unichain: bool = False,
    mixing: float = 0.05,
    square: bool = False,
    max_joint: int = 300,
) -> Model:
    """A random model with |S| |A| <= max_joint; ranges are inclusive.

    Parents are random and in random order; an agent is read by no kernel, some, or all of them
    (shared actions); a kernel's rows are Dirichlet with its own log-uniform concentration (1e-3:
    nearly deterministic). structure: `general`; `periodic` (coordinate 0 cycles for ever, so the
    chain has period S_0 >= 2); `nilpotent` (kernel j reads only coordinates below j: E^s strictly
    triangular). unichain: every random row is mixed with uniform by `mixing`: one closed class for
    every policy. square: N = K.
    """
    while True:
        n = int(rng.integers(n_coordinates[0], n_coordinates[1] + 1))
        agents = n if square else int(rng.integers(n_agents[0], n_agents[1] + 1))
        state_sizes, action_sizes = _sizes(rng, n, sizes), _sizes(rng, agents, sizes)
        if structure == "periodic":
            state_sizes[0] = max(2, state_sizes[0])
        if np.prod(state_sizes) * np.prod(action_sizes) <= max_joint:
            break
    readers = rng.choice([0.0, 0.5, 0.5, 1.0], agents)
    kernels, rewards = [], []
    for j in range(n):
        states = _subset(rng, j if structure == "nilpotent" else n, max_parents)
        actions = tuple(int(k) for k in rng.permutation(agents) if rng.random() < readers[k])
        if structure == "periodic" and j == 0:
            kernels.append(((0,), (), np.roll(np.eye(state_sizes[0]), 1, axis=1)))
            continue
        shape = [state_sizes[i] for i in states] + [action_sizes[k] for k in actions]
        alpha = np.full(state_sizes[j], _log_uniform(rng, concentration))
        table = rng.dirichlet(alpha, shape)
        table /= table.sum(-1, keepdims=True)
        if unichain:
            table = (1 - mixing) * table + mixing / state_sizes[j]
        kernels.append((states, actions, table))
    for _ in range(rng.integers(n_rewards[0], n_rewards[1] + 1)):
        states, actions = _subset(rng, n, 2), _subset(rng, agents, 2)
        shape = [state_sizes[i] for i in states] + [action_sizes[k] for k in actions]
        rewards.append((states, actions, rng.normal(size=shape)))
    return Model(tuple(state_sizes), tuple(action_sizes), kernels, rewards)


def random_policy(
    rng: np.random.Generator,
    model: Model,
    *,
    scopes: Sequence[tuple[int, ...]] | None = None,
    max_scope: int | None = None,
    full_scopes: bool = False,
    scale: tuple[float, float] = (0.1, 10.0),
    minus_infinity: float = 0.0,
    temperature: tuple[float, float] = (0.2, 3.0),
    equal_temperatures: bool = False,
) -> Policy:
    """Normal logits on random scopes (any order, partial, empty, overlapping; `full_scopes`: all).

    Each agent has its own log-uniform logit scale and temperature. With probability
    `minus_infinity` a logit becomes -inf; one action of every row is kept.
    """
    n = model.n_coordinates
    if scopes is None:
        largest = n if max_scope is None else max_scope
        scopes = [_subset(rng, n, largest) for _ in range(model.n_agents)]
    if full_scopes:
        scopes = [tuple(int(i) for i in rng.permutation(n)) for _ in range(model.n_agents)]
    logits = []
    for scope, size in zip(scopes, model.action_sizes, strict=True):
        shape = (*(model.state_sizes[i] for i in scope), size)
        z = rng.normal(size=shape) * _log_uniform(rng, scale)
        kept = np.eye(size, dtype=bool)[rng.integers(size, size=shape[:-1])]
        logits.append(np.where((rng.random(shape) < minus_infinity) & ~kept, -np.inf, z))
    tau = np.array([_log_uniform(rng, temperature) for _ in scopes])
    return Policy(list(scopes), logits, np.full(len(tau), tau[0]) if equal_temperatures else tau)
