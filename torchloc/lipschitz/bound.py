"""Certified upper bounds on L and span where the scope states are too many to enumerate.

`logit_bounds` takes the least of all upper bounds there are, coordinate by coordinate: signed differences
(`differences`), branched on the scope's coordinates (`branching`), the quadratic bound (`quadratic`) and
what a `Bounded` network holds by construction. `norm_product_bounds` is the usual product of spectral
norms, to compare with.

All bound what the module *computes*: with ẑ the logits that come out in the module's own dtype and
arithmetic (whatever the order of its sums), and centred as `enumeration` centres them in float64,

    bound ≥ max over pairs of states that differ in i alone of max_a |z̃̂_a(s') − z̃̂_a(s)|     (L),
    bound ≥ max over the same pairs of max_a − min_a of ẑ_a(s') − ẑ_a(s)                      (span).

The bounds are first rigorous for exact arithmetic on the stored weights, in spite of being computed in
float64, and then enlarged by the a-priori forward error of the module (`layers.forward_error`), which in
float32 is what is felt: around 1e-4 for 64–64 networks with logits of order one.

Assumed: matrix products sum each entry's products in some order, as the libraries that torch calls do, and
tanh, exp and erf are as accurate as `activations` says.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from torchloc.errors import InputError
from torchloc.lipschitz.activations import STEEPEST
from torchloc.lipschitz.boxes import Prepared, coordinate_blocks, prepare
from torchloc.lipschitz.branching import Frontier, value_pairs
from torchloc.lipschitz.enumeration import group_spreads, scope_matrix
from torchloc.lipschitz.layers import read_chains
from torchloc.lipschitz.rounding import gamma
from torchloc.mdp.checks import integers
from torchloc.policy import SoftmaxPolicy, Tabular
from torchloc.policy.groups import ROW_BUDGET
from torchloc.shapes import Float

BRANCHES = 64
"""Splits of the boxes of one coordinate, unless said otherwise."""
STEPS = 10
"""Steps towards the best quadratic bound, unless said otherwise."""
CHUNK = 2**23
"""Numbers held for the boxes of a chunk of agents, about."""


def logit_bounds(
    policy: SoftmaxPolicy,
    *,
    agents: ArrayLike | None = None,
    span: bool = False,
    branches: int = BRANCHES,
    steps: int = STEPS,
) -> sp.csr_array:
    """Certified upper bounds on L, or on span, of every agent in every coordinate of its scope.

    Tables are enumerated: their entries are exact. So are those of networks without hidden layers, but
    for rounding.

    Args:
        policy: The policy; its networks are tables or chains of layers that can be read (`layers`).
        agents: Which agents; None: all. The rows of others are left empty.
        span: Bound span instead of L. Both are in units of the logits, not divided by τ.
        branches: Splits of each coordinate's boxes at most, ≥ 0: more is tighter and takes longer, in
            proportion. It is what tightens small scopes; with as many as there are pairs of scope
            states the bound is exact but for rounding.
        steps: Steps of the quadratic bound's search, ≥ 0; 0 leaves it out. It is what tightens large
            scopes and wide layers, at about 1 ms a step, coordinate, pair of values and combination of
            logits (2 A of them for L, A (A − 1) for span) with 64 units a layer.

    Returns:
        (K, N) CSR float64, upper bounds; ∞ where floats could overflow.

    Raises:
        InputError: An agent that does not exist, a negative number, or a network that cannot be read.

    Example:
        >>> import torchloc as tl
        >>> from torchloc.environments import sysadmin
        >>> from torchloc.lipschitz import logit_bounds, logit_lipschitz
        >>> mdp = sysadmin(n=3)
        >>> policy = tl.SoftmaxPolicy.mlp(mdp, tl.neighbourhood_scopes(mdp), seed=1)
        >>> bool((logit_bounds(policy) - logit_lipschitz(policy)).data.min() >= 0)
        True
    """
    for field, value in {"branches": branches, "steps": steps}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{field} is {value!r}; give a whole number ≥ 0")

    def bound(prepared: Prepared) -> Tensor:
        frontier = Frontier(prepared, branches)
        reached = frontier.run()
        return frontier.sharpened(reached, steps=steps) if steps else reached

    return _bounds(policy, agents, span, branches, bound)


def norm_product_bounds(
    policy: SoftmaxPolicy, *, agents: ArrayLike | None = None, span: bool = False
) -> sp.csr_array:
    """Upper bounds by the product of norms: ‖W_1[i, b] − W_1[i, a]‖₂ Π ‖W_ℓ‖₂ ‖W_{D+1} c‖₂ and slopes.

    To compare `logit_bounds` with; arguments, units and errors as there. Rounding is included.

    Returns:
        (K, N) CSR float64, upper bounds.
    """
    return _bounds(policy, agents, span, 0, _norm_products)


def certified_spreads(
    policy: SoftmaxPolicy,
    *,
    span: bool,
    budget: int = ROW_BUDGET,
    branches: int = BRANCHES,
    steps: int = STEPS,
) -> tuple[sp.csr_array, tuple[str, ...]]:
    """What a certificate may use: exact values where they can be enumerated, upper bounds elsewhere.

    Args:
        policy: The policy.
        span: span instead of L.
        budget: Scope states of one agent that are enumerated at most.
        branches: Of `logit_bounds`.
        steps: Of `logit_bounds`.

    Returns:
        (K, N) CSR float64 in units of the logits, and for every group of the policy its source,
        `exact` or `bound`. Exact entries are right up to rounding in float64; bounds include it.

    Raises:
        InputError: A network that can neither be enumerated nor read.
    """
    sources = certified_sources(policy, budget=budget)
    entries, bounded = [], [np.zeros(0, dtype=np.int64)]
    for index, (source, group) in enumerate(zip(sources, policy.groups, strict=True)):
        if source == "exact":
            entries.append(group_spreads(policy, index, span=span))
        else:
            entries.append(torch.zeros(group.scope.shape, dtype=torch.float64))
            bounded.append(group.agents)
    agents = np.concatenate(bounded)
    bounds = logit_bounds(policy, agents=agents, span=span, branches=branches, steps=steps)
    return sp.csr_array(scope_matrix(policy, entries) + bounds), sources


def certified_sources(policy: SoftmaxPolicy, *, budget: int = ROW_BUDGET) -> tuple[str, ...]:
    """For every group what `certified_spreads` takes: `exact` or `bound`."""
    return tuple(
        "exact" if group.n_rows <= budget or type(network) is Tabular else "bound"
        for group, network in zip(policy.groups, policy.networks, strict=True)
    )


def combinations(n_actions: int, *, span: bool) -> Float[Tensor, "A R"]:
    """The combinations c of logits whose largest c·(z(s') − z(s)) is L, or span; both signs of each.

    With two actions L has one: the other is its negative.
    """
    eye = torch.eye(n_actions, dtype=torch.float64)
    if span:
        first, second = torch.tril_indices(n_actions, n_actions, -1)
        half = (eye[first] - eye[second]).T
    else:
        half = (eye - 1.0 / n_actions)[:, : 1 if n_actions == 2 else n_actions]
    return torch.cat([half, -half], dim=1)


def _bounds(
    policy: SoftmaxPolicy,
    agents: ArrayLike | None,
    span: bool,
    branches: int,
    bound: Callable[[Prepared], Tensor],
) -> sp.csr_array:
    """The matrix of a bound on exact arithmetic, (G, m) of some agents, plus what floats add."""
    wanted = _wanted(policy, agents)
    entries = []
    for index, group in enumerate(policy.groups):
        network = policy.networks[index]
        result = torch.zeros(group.scope.shape, dtype=torch.float64)
        rows = torch.from_numpy(np.flatnonzero(wanted[group.agents]))
        entries.append(result)
        if not len(rows) or max(group.sizes, default=1) < 2 or group.n_actions < 2:
            continue
        if type(network) is Tabular:
            result[rows] = group_spreads(policy, index, span=span)[rows]
            continue
        size = _chunk(group.sizes, branches)
        with torch.no_grad():
            for part, chain in read_chains(network, group, rows, size, f"networks.{index}"):
                prepared = prepare(chain, combinations(group.n_actions, span=span))
                value = bound(prepared) + prepared.noise.amax(dim=1, keepdim=True)
                value = torch.where(value.isnan(), torch.inf, value)
                value = torch.minimum(value, prepared.ceiling.amax(dim=1, keepdim=True))
                result[part] = torch.where(torch.tensor(group.sizes) > 1, value, 0.0)
    return scope_matrix(policy, entries)


def _wanted(policy: SoftmaxPolicy, agents: ArrayLike | None) -> np.ndarray:
    """(K,) whether an agent's row is asked for."""
    if agents is None:
        return np.ones(policy.n_agents, dtype=bool)
    chosen = integers(agents, "agents", 1)
    bad = (chosen < 0) | (chosen >= policy.n_agents)
    if bad.any():
        raise InputError(
            f"agents: {int(chosen[bad][0])} is no agent; the policy has agents 0 to "
            f"{policy.n_agents - 1}"
        )
    result = np.zeros(policy.n_agents, dtype=bool)
    result[chosen] = True
    return result


def _chunk(sizes: tuple[int, ...], branches: int) -> int:
    """Agents at once: the fixed values of all their boxes are held together."""
    pairs = max(size * (size - 1) // 2 for size in sizes)
    return max(1, CHUNK // (len(sizes) ** 2 * (pairs + (branches + 1) * max(sizes))))


def _norm_products(prepared: Prepared) -> Float[Tensor, "G m"]:
    chain = prepared.chain
    first, second, real = value_pairs(chain.sizes)
    place = torch.arange(len(chain.sizes))[:, None]
    layers = (layer.weight.shape[2] for layer in chain.affine)
    slack = gamma(sum(layers) + len(chain.sizes) + 16)
    if not chain.kinds:  # W_1 c is all there is
        rows = coordinate_blocks(chain, prepared.rows.mT)
        apart = (rows[:, place, second] - rows[:, place, first]).abs().amax(dim=-1)
        apart = apart + slack * prepared.mass.amax(dim=(1, 2))[:, None, None]
        return torch.where(real, apart, 0.0).amax(dim=2)
    blocks = coordinate_blocks(chain, chain.affine[0].weight)
    apart = (blocks[:, place, second] - blocks[:, place, first]).norm(dim=-1)
    product = (prepared.rows.norm(dim=2) + slack * prepared.mass.norm(dim=2)).amax(dim=1)
    for kind, norm in zip(chain.kinds[1:], prepared.norms, strict=True):
        product = product * STEEPEST[kind] * norm
    product = product * STEEPEST[chain.kinds[0]] * (1.0 + slack)
    return torch.where(real, apart, 0.0).amax(dim=2) * product[:, None]
