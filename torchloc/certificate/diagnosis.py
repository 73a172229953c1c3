"""Why a policy is not certified: what is critical, and what would mend it.

The numbers of a certificate are proved; those of a diagnosis explain. They come from approximate
Perron vectors (left v, right u) of the critical component, and say so: first-order changes of ρ,

    ∂ρ / ∂H[j, i] = v_j u_i / (v·u),      ∂ρ / ∂Π[k, i] = Σ_j v_j E^a[j, k] u_i / (v·u),

and the cycle of largest geometric mean weight, a lower bound of ρ (Karp 1978). Temperatures that
certify are checked one by one, so those are proved again.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from torchloc.certificate.certify import Certificate
from torchloc.certificate.given import Sensitivities
from torchloc.certificate.ladder import Environment, Ladder, Spreads
from torchloc.certificate.rounding import UNIT
from torchloc.errors import InputError
from torchloc.mdp.checks import FloatArray, IntArray
from torchloc.policy import SoftmaxPolicy
from torchloc.sensitivity import RUNGS
from torchloc.spectral import SpectralBound, norm_columns, norm_rows, spectral_radius

MONOTONE = ("span", "tanh", "paper")
"""Rungs whose ρ falls with τ while the logits are held."""
GRID = tuple(2.0**power for power in range(-6, 7))
"""Multiples of the present τ at which the other rungs are tried."""
_COMPONENTS = 64
_CYCLE_NODES = 1000
_SWEEPS = 2000


@dataclass(frozen=True)
class Edge:
    """One influence: coordinate `cause` on the next value of coordinate `influenced`."""

    cause: int
    influenced: int
    weight: float


@dataclass(frozen=True)
class Lever:
    """One entry of Π and what it does to ρ.

    Attributes:
        agent: k.
        coordinate: i.
        sensitivity: Π[k, i] on the rung.
        slope: ∂ρ/∂Π[k, i], to first order.
    """

    agent: int
    coordinate: int
    sensitivity: float
    slope: float

    @property
    def share(self) -> float:
        """First-order fall of ρ if the agent ignored the coordinate."""
        return self.sensitivity * self.slope


@dataclass(frozen=True)
class Temperatures:
    """Which temperatures certify a rung while the logits are held.

    Attributes:
        rung: Its name.
        multiples: Multiples of the present temperatures that were checked to certify (γρ < 1).
        threshold: Smallest multiple known to certify, for the rungs that are monotone in τ: every larger one does
            too. None if none does, or if the rung is not monotone.
    """

    rung: str
    multiples: tuple[float, ...]
    threshold: float | None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Why ρ is what it is.

    Attributes:
        rung: The rung that was looked at.
        rho: Its bracket.
        floor: Bracket of ρ(E^s); where γ times its lower end is ≥ 1, no temperature certifies `exact` … `scope`.
        component: Coordinates of the strongly connected component with the largest ρ, ascending.
        cycle: The cycle of largest geometric mean weight found in it, edge after edge.
        cycle_rate: That mean, a lower bound of ρ.
        levers: Entries of Π by `share`, largest first; empty for `coupled`, which has no Π.
    """

    rung: str
    rho: SpectralBound
    floor: SpectralBound
    component: IntArray
    cycle: tuple[Edge, ...]
    cycle_rate: float
    levers: tuple[Lever, ...]


def diagnose(
    certificate: Certificate, policy: SoftmaxPolicy, rung: str = "exact", *, top: int = 5
) -> Diagnosis:
    """What makes ρ of a rung as large as it is.

    Args:
        certificate: Of this policy.
        policy: The policy.
        rung: A rung of the certificate.
        top: How many levers.

    Raises:
        InputError: The certificate has no such rung.
    """
    if rung not in certificate:
        raise InputError(f"rung is {rung!r}; this certificate has {', '.join(certificate)}")
    matrix = certificate[rung].matrix
    component = critical_component(matrix)
    inner = sp.csr_array(matrix[component][:, component])
    left, right = perron(inner.T), perron(inner)
    overlap = float(left @ right)
    cycle, rate = heaviest_cycle(inner, left * right)
    edges = tuple(Edge(int(component[i]), int(component[j]), float(inner[j, i])) for i, j in cycle)
    levers: list[Lever] = []
    if rung in RUNGS and rung != "coupled" and overlap > 0:
        ladder = Ladder(certificate.environment, policy)
        sensitivity = sp.coo_array(ladder.policy_rung(rung))
        full_left, full_right = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[0])
        full_left[component], full_right[component] = left, right
        pushes = ladder.action.T @ full_left
        agents, coordinates = sensitivity.coords
        slopes = pushes[agents] * full_right[coordinates] / overlap
        best = np.argsort(-sensitivity.data * slopes, kind="stable")[:top]
        levers = [
            Lever(int(agents[e]), int(coordinates[e]), float(sensitivity.data[e]), float(slopes[e]))
            for e in best
            if slopes[e] > 0
        ]
    return Diagnosis(
        rung, certificate[rung].rho, certificate.floor, component, edges, rate, tuple(levers)
    )


def critical_component(matrix: sp.csr_array) -> IntArray:
    """The strongly connected component with the largest ρ; ties go to the one found first.

    Components are tried in the order of their smaller norm, until no other can exceed the best.
    """
    count, label = connected_components(matrix, connection="strong")
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(count + 1))
    entries = sp.coo_array(matrix)
    inside = label[entries.coords[0]] == label[entries.coords[1]]
    rows, columns = entries.coords[0][inside], entries.coords[1][inside]
    sums = [np.bincount(side, entries.data[inside], matrix.shape[0]) for side in (rows, columns)]
    norms = [np.maximum.reduceat(one[order], bounds[:-1]) for one in sums]
    ceiling = np.minimum(*norms)
    best, best_rho = order[bounds[0] : bounds[1]], -1.0
    for candidate in np.argsort(-ceiling, kind="stable")[:_COMPONENTS]:
        if ceiling[candidate] <= best_rho:
            break
        members = order[bounds[candidate] : bounds[candidate + 1]]
        rho = spectral_radius(matrix[members][:, members]).lower
        if rho > best_rho:
            best, best_rho = members, rho
    return np.sort(best)


def perron(matrix: sp.csr_array) -> FloatArray:
    """An approximate right Perron vector of an irreducible nonnegative matrix, by shifted power steps."""
    n = matrix.shape[0]
    vector = np.full(n, 1.0 / n)
    shift = 0.5 * max(
        min(norm_rows(sp.csr_array(matrix)), norm_columns(sp.csr_array(matrix))), 1e-300
    )
    for _ in range(_SWEEPS):
        moved = matrix @ vector + shift * vector
        total = moved.sum()
        if not total > 0:
            return vector
        moved /= total
        if np.abs(moved - vector).max() <= 1e-12 * moved.max():
            return moved
        vector = moved
    return vector


def heaviest_cycle(
    matrix: sp.csr_array, importance: FloatArray
) -> tuple[list[tuple[int, int]], float]:
    """The cycle of largest geometric mean weight (Karp 1978): [(cause, influenced), …] and its mean.

    Args:
        matrix: (n, n) CSR, rows influenced.
        importance: (n,) above 1,000 nodes only the most important ones are searched.
    """
    n = matrix.shape[0]
    kept = np.sort(np.argsort(-importance, kind="stable")[: min(n, _CYCLE_NODES)])
    part = sp.coo_array(matrix[kept][:, kept])
    positive = part.data > 0
    heads, tails = part.coords[0][positive], part.coords[1][positive]
    weights = np.log(part.data[positive])
    size = len(kept)
    if len(weights) == 0:
        return [], 0.0
    best = np.full((size + 1, size), -np.inf)
    parent = np.full((size + 1, size), -1, dtype=np.int64)
    best[0] = 0.0
    by_head = np.argsort(heads, kind="stable")
    heads, tails, weights = heads[by_head], tails[by_head], weights[by_head]
    present, first = np.unique(heads, return_index=True)
    for length in range(1, size + 1):
        scores = best[length - 1, tails] + weights
        top = np.maximum.reduceat(scores, first)
        best[length, present] = top
        hit = scores == np.repeat(top, np.diff([*first, len(scores)]))
        places = np.flatnonzero(hit)
        parent[length, heads[places[::-1]]] = tails[places[::-1]]
    reached = np.isfinite(best[size])
    if not reached.any():
        return [], 0.0
    lengths = size - np.arange(size)[:, None]
    with np.errstate(invalid="ignore"):
        means = (best[size] - best[:size]) / lengths
    means = np.where(np.isfinite(best[:size]), means, np.inf).min(axis=0)
    node = int(np.argmax(np.where(reached, means, -np.inf)))
    walk = [node]
    for length in range(size, 0, -1):
        walk.append(int(parent[length, walk[-1]]))
    walk.reverse()
    seen: dict[int, int] = {}
    for at, node in enumerate(walk):
        if node in seen:
            loop = walk[seen[node] : at + 1]
            edges = list(itertools.pairwise(loop))
            dense = {(t, h): w for h, t, w in zip(heads, tails, weights, strict=True)}
            mean = math.fsum(dense[edge] for edge in edges) / len(edges)
            return [(int(kept[i]), int(kept[j])) for i, j in edges], math.exp(mean)
        seen[node] = at
    return [], 0.0


def certifying_temperatures(
    environment: Environment,
    policy: SoftmaxPolicy,
    rungs: Sequence[str] | None = None,
    *,
    accuracy: float = 1e-3,
    discount: float = 1.0,
) -> list[Temperatures]:
    """Which multiples of the present temperatures certify each rung (γρ < 1), the logits held.

    Args:
        environment: Of the model.
        policy: The policy; not changed.
        rungs: Which rungs; None: `coupled`, `exact`, `span` and `paper`, without `coupled` where there are
            sensitivities alone.
        accuracy: Relative accuracy of a threshold; the threshold returned is itself certified.
        discount: γ in (0, 1].
    """
    if rungs is None:
        rungs = ("exact", "span", "paper")
        if not isinstance(environment.model, Sensitivities):
            rungs = ("coupled", *rungs)
    trial = copy.deepcopy(policy)
    present, spreads = policy.temperature.clone(), Spreads(trial)

    def certifies(rung: str, multiple: float) -> bool:
        trial.set_temperature(present * multiple)
        radius = spectral_radius(Ladder(environment, trial, spreads=spreads).matrix(rung)).upper
        return radius * discount * (1.0 + 4.0 * UNIT) < 1.0 if discount < 1.0 else radius < 1.0

    result = []
    floor = discount * environment.floor.lower
    for rung in rungs:
        if rung in MONOTONE:
            threshold = None
            if floor < 1.0:
                threshold = _threshold(lambda m, r=rung: certifies(r, m), accuracy)
            found = () if threshold is None else (threshold,)
            result.append(Temperatures(rung, found, threshold))
        else:
            hopeless = rung != "coupled" and floor >= 1.0
            found = () if hopeless else tuple(m for m in GRID if certifies(rung, m))
            result.append(Temperatures(rung, found, None))
    return result


def _threshold(certifies: Callable[[float], bool], accuracy: float) -> float | None:
    """Smallest certifying multiple in [1e-9, 1e9], by bisection of its logarithm."""
    low, high = -9.0, 9.0
    if not certifies(10.0**high):
        return None
    if certifies(10.0**low):
        return 10.0**low
    while high - low > math.log10(1.0 + accuracy):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if certifies(10.0**middle) else (middle, high)
    return 10.0**high
